/* The JVP of attention from C, on the driver's interface alone:
 *   pushforward compile examples/attention.pf --jvp q,k,v --dim D=64 --dtype bf16 --target sm_90a -o out
 *   cc -Iout examples/c/attention.c -lcuda -o attention && ./attention out
 * Prints the first numbers of the output and its tangent for q = k = v = 1 and tangents of 1: both are 1. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include "attention_jvp.h"

enum { B = 2, H = 4, N = 1000, D = 64, COUNT = B * H * N * D };

static void check(CUresult r, const char *what) {
  if (r == CUDA_SUCCESS) return;
  fprintf(stderr, "%s: error %d\n", what, (int)r);
  exit(1);
}

/* A cubin where one was made, else PTX, which the driver compiles. Text ends with a zero. */
static char *read_code(const char *folder) {
  const char *names[] = {"attention_jvp_0.cubin", "attention_jvp_0.ptx"};
  for (int i = 0; i < 2; i++) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    FILE *f = fopen(path, "rb");
    if (!f) continue;
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    char *code = calloc(size + 1, 1);
    if (!code || fread(code, 1, size, f) != (size_t)size) exit(1);
    fclose(f);
    return code;
  }
  fprintf(stderr, "no code in %s\n", folder);
  exit(1);
}

int main(int argc, char **argv) {
  CUdevice device;
  CUcontext context;
  CUmodule module;
  CUfunction kernel;
  CUdeviceptr in[6], out[2];
  char *code = read_code(argc > 1 ? argv[1] : "out");
  check(cuInit(0), "no driver");
  check(cuDeviceGet(&device, 0), "no device");
  check(cuDevicePrimaryCtxRetain(&context, device), "context");
  check(cuCtxSetCurrent(context), "context");
  check(cuModuleLoadData(&module, code), "the code does not load");
  check(cuModuleGetFunction(&kernel, module, PF_ATTENTION_JVP_0_SYMBOL), "no such kernel");
  for (int i = 0; i < 6; i++) { /* 0x3f80 is 1 in bf16 */
    check(cuMemAlloc(&in[i], 2 * COUNT), "memory");
    check(cuMemsetD16(in[i], 0x3f80, COUNT), "fill");
  }
  for (int i = 0; i < 2; i++) check(cuMemAlloc(&out[i], 4 * COUNT), "memory");
  check(pf_attention_jvp_0_launch(kernel, 0, ARGUMENTS), "launch");
  check(cuCtxSynchronize(), "the kernel failed");
  float first[2][4];
  for (int i = 0; i < 2; i++) check(cuMemcpyDtoH(first[i], out[i], sizeof first[i]), "copy");
  for (int i = 0; i < 2; i++) printf("%s %g %g %g %g\n", i ? "o.t" : "o  ", first[i][0], first[i][1], first[i][2], first[i][3]);
  return 0;
}
