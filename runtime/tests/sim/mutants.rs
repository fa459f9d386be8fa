//! A matrix product by hand, and what becomes of it under random edits.

use runtime::sim::mutate::mutants;
use runtime::sim::{Arg, Module, Options};

/// `c[m, n] = Σ_k a[m, k] b[k, n]`, bf16 in, f32 out: tiles of 32 by 16, two stages of copies, 2 warps.
const PRODUCT: &str = "
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dyn[];
.visible .entry product(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 m, .param .u32 n, .param .u32 k)
.reqntid 64
{
	.reg .pred %p<10>;
	.reg .b32 %r<90>;
	.reg .b64 %rd<30>;
	ld.param.b64 %rd1, [a];
	ld.param.b64 %rd2, [b];
	ld.param.b64 %rd3, [c];
	ld.param.b32 %r1, [m];
	ld.param.b32 %r2, [n];
	ld.param.b32 %r3, [k];
	mov.u32 %r4, %tid.x;
	mov.u32 %r5, %ctaid.x;
	mov.u32 %r6, %ctaid.y;
	mov.b32 %r7, dyn;
	shr.u32 %r10, %r4, 1;
	and.b32 %r11, %r4, 1;
	shl.b32 %r12, %r5, 5;
	add.u32 %r13, %r12, %r10;
	setp.lt.u32 %p1, %r13, %r1;
	selp.b32 %r14, 16, 0, %p1;
	mul.wide.u32 %rd4, %r13, %r3;
	shl.b32 %r15, %r11, 3;
	cvt.u64.u32 %rd5, %r15;
	add.s64 %rd4, %rd4, %rd5;
	shl.b64 %rd4, %rd4, 1;
	add.s64 %rd4, %rd1, %rd4;
	shl.b32 %r16, %r4, 4;
	add.u32 %r17, %r7, %r16;
	setp.lt.u32 %p2, %r4, 32;
	shl.b32 %r18, %r6, 4;
	add.u32 %r19, %r18, %r15;
	mul.wide.u32 %rd6, %r10, %r2;
	cvt.u64.u32 %rd7, %r19;
	add.s64 %rd6, %rd6, %rd7;
	shl.b64 %rd6, %rd6, 1;
	add.s64 %rd6, %rd2, %rd6;
	shl.b32 %r20, %r2, 5;
	cvt.u64.u32 %rd8, %r20;
	and.b32 %r21, %r4, 31;
	shr.u32 %r22, %r4, 5;
	and.b32 %r23, %r21, 15;
	shr.u32 %r24, %r21, 4;
	shl.b32 %r25, %r23, 5;
	shl.b32 %r26, %r24, 4;
	add.u32 %r25, %r25, %r26;
	shl.b32 %r27, %r22, 9;
	add.u32 %r28, %r25, %r27;
	add.u32 %r28, %r28, %r7;
	add.u32 %r29, %r25, %r7;
	mov.b32 %r50, 0f00000000;
	mov.b32 %r51, 0f00000000;
	mov.b32 %r52, 0f00000000;
	mov.b32 %r53, 0f00000000;
	mov.b32 %r54, 0f00000000;
	mov.b32 %r55, 0f00000000;
	mov.b32 %r56, 0f00000000;
	mov.b32 %r57, 0f00000000;
	cp.async.cg.shared.global [%r17], [%rd4], 16, %r14;
	@%p2 cp.async.cg.shared.global [%r17+1024], [%rd6], 16;
	cp.async.commit_group;
	mov.b32 %r30, 0;
	mov.b32 %r31, 0;
$LOOP:
	add.u32 %r32, %r30, 16;
	xor.b32 %r33, %r31, 2048;
	setp.ge.u32 %p3, %r32, %r3;
	@%p3 bra $LAST;
	add.s64 %rd4, %rd4, 32;
	add.s64 %rd6, %rd6, %rd8;
	add.u32 %r34, %r17, %r33;
	cp.async.cg.shared.global [%r34], [%rd4], 16, %r14;
	@%p2 cp.async.cg.shared.global [%r34+1024], [%rd6], 16;
$LAST:
	cp.async.commit_group;
	cp.async.wait_group 1;
	bar.sync 0;
	add.u32 %r35, %r28, %r31;
	add.u32 %r36, %r29, %r31;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r60, %r61, %r62, %r63}, [%r35];
	ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r64, %r65, %r66, %r67}, [%r36+1024];
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r50, %r51, %r52, %r53}, {%r60, %r61, %r62, %r63}, {%r64, %r65}, {%r50, %r51, %r52, %r53};
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r54, %r55, %r56, %r57}, {%r60, %r61, %r62, %r63}, {%r66, %r67}, {%r54, %r55, %r56, %r57};
	bar.sync 0;
	mov.b32 %r30, %r32;
	mov.b32 %r31, %r33;
	setp.lt.u32 %p4, %r30, %r3;
	@%p4 bra $LOOP;
	shr.u32 %r40, %r21, 2;
	and.b32 %r41, %r21, 3;
	shl.b32 %r42, %r22, 4;
	add.u32 %r43, %r12, %r42;
	add.u32 %r43, %r43, %r40;
	shl.b32 %r44, %r41, 1;
	add.u32 %r45, %r18, %r44;
	mul.wide.u32 %rd10, %r43, %r2;
	cvt.u64.u32 %rd11, %r45;
	add.s64 %rd10, %rd10, %rd11;
	shl.b64 %rd10, %rd10, 2;
	add.s64 %rd12, %rd3, %rd10;
	shl.b32 %r46, %r2, 5;
	cvt.u64.u32 %rd13, %r46;
	add.s64 %rd14, %rd12, %rd13;
	setp.ge.u32 %p5, %r43, %r1;
	@%p5 bra $NEXT;
	st.global.v2.b32 [%rd12], {%r50, %r51};
	st.global.v2.b32 [%rd12+32], {%r54, %r55};
$NEXT:
	add.u32 %r47, %r43, 8;
	setp.ge.u32 %p6, %r47, %r1;
	@%p6 bra $END;
	st.global.v2.b32 [%rd14], {%r52, %r53};
	st.global.v2.b32 [%rd14+32], {%r56, %r57};
$END:
	ret;
}
";

/// Runs it; the relative error, or why not.
fn error_of(text: &str) -> Result<f64, String> {
    let module = Module::parse(text).map_err(|e| e.to_string())?;
    let mut worst = 0f64;
    for (m, n, k) in [(50usize, 32usize, 96usize), (42, 16, 16), (23, 16, 48)] {
        let value = |i: usize, s: usize| ((i * s + i / 7) % 31) as f32 / 16.0 - 0.9;
        let bf = |x: f32| (x.to_bits() >> 16) as u16;
        let up = |x: u16| f32::from_bits((x as u32) << 16) as f64;
        let (a, b): (Vec<u16>, Vec<u16>) = ((0..m * k).map(|i| bf(value(i, 11))).collect(), (0..k * n).map(|i| bf(value(i, 17))).collect());
        let bytes = |v: &[u16]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let mut c = vec![0u8; 4 * m * n];
        let options = Options { budget: 100_000, ..Options::default() };
        let (ba, bb) = (bytes(&a), bytes(&b));
        let args = &mut [Arg::Input(&ba), Arg::Input(&bb), Arg::Output(&mut c), Arg::U32(m as u32), Arg::U32(n as u32), Arg::U32(k as u32)];
        let r = module.launch("product", [m.div_ceil(32) as u32, n as u32 / 16, 1], [64, 1, 1], 4096, args, &options).map_err(|f| f.to_string())?;
        if r.unwritten["c"] > 0 {
            return Err(format!("{} bytes are not written", r.unwritten["c"]));
        }
        let (mut e, mut t) = (0.0, 0.0);
        for (i, c) in c.chunks(4).enumerate() {
            let want: f64 = (0..k).map(|l| up(a[i / n * k + l]) * up(b[l * n + i % n])).sum();
            let got = f32::from_le_bytes([c[0], c[1], c[2], c[3]]) as f64;
            e += (got - want) * (got - want);
            t += want * want;
        }
        // NaN counts as wrong.
        let e = (e / t).sqrt();
        worst = if e <= worst { worst } else { e };
    }
    Ok(worst)
}

#[test]
fn the_product_is_right_and_nearly_every_mutant_is_caught() {
    let e = error_of(PRODUCT).unwrap();
    assert!(e < 1e-6, "{e}");
    let all = mutants(PRODUCT, 150, 1);
    assert!(all.len() >= 120, "{}", all.len());
    let (mut caught, mut survivors) = (0, vec![]);
    for m in &all {
        match error_of(&m.text) {
            Ok(e) if e < 1e-6 => survivors.push(m.what.clone()),
            _ => caught += 1,
        }
    }
    // Some survivors are the same program: a counter that starts at 1 instead of 0 and is compared with multiples of 16.
    let share = caught as f64 / (caught + survivors.len()) as f64;
    println!("{caught} of {} caught; survivors:\n{}", caught + survivors.len(), survivors.join("\n"));
    assert!(share >= 0.95, "{share}: {survivors:#?}");
}

#[test]
fn mutants_are_the_same_for_the_same_seed() {
    assert_eq!(mutants(PRODUCT, 20, 7), mutants(PRODUCT, 20, 7));
    assert!(mutants(PRODUCT, 20, 7).iter().all(|m| m.text != PRODUCT && m.text.lines().count() == PRODUCT.lines().count()));
}

#[test]
fn no_text_makes_it_panic() {
    let mut s = 3u64;
    let mut below = |n: usize| {
        s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (s >> 33) as usize % n
    };
    let words: Vec<&str> = PRODUCT.split_whitespace().collect();
    for i in 0..3000 {
        let mut t = PRODUCT.to_string();
        match i % 3 {
            // A piece is gone, a word stands where another one did, a line is doubled or cut.
            0 => {
                let at = below(t.len() - 8);
                t.replace_range(at..at + 1 + below(8), "");
            }
            1 => {
                let (a, b) = (words[below(words.len())], words[below(words.len())]);
                t = t.replacen(a, b, 1 + below(3));
            }
            _ => {
                let at = below(t.len());
                let c = ["{", "}", ";", ",", "[", "b64", ".f64", "-1", "0", "%rd1", ".v4", "b8", "99999999999"][below(13)];
                t.insert_str(at, c);
            }
        }
        let _ = error_of(&t);
    }
}
