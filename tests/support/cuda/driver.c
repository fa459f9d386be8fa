/* A driver that does nothing but say what it was asked for: memory is the host's, a launch prints its grid, block, shared memory and parameters. */
#include "cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Buffers of the kernel that is launched; four numbers follow. */
#ifndef BUFFERS
#define BUFFERS 8
#endif
enum { MULTIPROCESSORS = 6 };

static int allowed;

CUresult cuInit(unsigned flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return (void)device, *context = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  *value = MULTIPROCESSORS;
  return device || attribute != CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuCtxSynchronize(void) { return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  const char *code = image;
  *module = (CUmodule)1;
  return printf("image %s\n", memcmp(code, "\177ELF", 4) ? strstr(code, ".version") ? "ptx" : "unknown" : "cubin"), CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)1;
  return (void)module, printf("symbol %s\n", name), CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) allowed = value;
  return (void)function, CUDA_SUCCESS;
}
/* Kept as what it was asked for: the first words are the rank, the address, the sizes and the first stride. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address, const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *tile, const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  (void)interleave, (void)promotion, (void)fill;
  if (!rank || rank > 5 || (cuuint64_t)address % 16) return CUDA_ERROR_INVALID_VALUE;
  for (cuuint32_t i = 0; i < rank; i++)
    if (!sizes[i] || !tile[i] || tile[i] > 256 || steps[i] != 1 || (i && strides[i - 1] % 16)) return CUDA_ERROR_INVALID_VALUE;
  map->opaque[0] = rank, map->opaque[1] = (cuuint64_t)address, map->opaque[2] = sizes[0];
  return printf("map type %d rank %u of %llu, %llu rows, tile %u x %u, swizzle %d\n", type, rank, sizes[0], rank > 1 ? sizes[1] : 1, tile[0], rank > 1 ? tile[1] : 1, swizzle), CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr *address, size_t bytes) { return *address = (CUdeviceptr)aligned_alloc(16, (bytes + 15) / 16 * 16), memset((void *)*address, 0, bytes), CUDA_SUCCESS; }
CUresult cuMemsetD16(CUdeviceptr address, unsigned short value, size_t count) {
  for (size_t i = 0; i < count; i++) ((unsigned short *)address)[i] = value;
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) { return memcpy(to, (void *)from, bytes), CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters, void **extra) {
  (void)function, (void)stream, (void)extra;
  if (shared > 49152 && (int)shared > allowed) return CUDA_ERROR_INVALID_VALUE;
  printf("launch %u %u %u of %u %u %u with %u\ndims", x, y, z, block_x, block_y, block_z, shared);
  for (int i = BUFFERS; i < BUFFERS + 4; i++) printf(" %lld", *(long long *)parameters[i]);
  int buffers = 0;
  for (int i = 0; i < BUFFERS; i++) buffers += *(CUdeviceptr *)parameters[i] % 16 == 0 && *(CUdeviceptr *)parameters[i] != 0;
  printf("\nbuffers %d\n", buffers);
  return CUDA_SUCCESS;
}
