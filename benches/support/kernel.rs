//! What the benches share: programs from `examples/`, and kernels with their memory, ready to run.

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::types::DType;
use pushforward::input::{Random, Source, Transform, Transforms, dims, names};
use pushforward::machine;
use runtime::cache::Cache;
use runtime::cpu::Pool;
use std::time::Duration;

/// A program, what it is differentiated along, and sizes.
pub struct Program {
    /// For the report.
    pub name: &'static str,
    /// In `examples/`.
    pub file: &'static str,
    /// The function; none for the file's first.
    pub function: Option<&'static str>,
    /// One list per transform.
    pub jvp: &'static [&'static str],
    /// `I=64,J=64`.
    pub dims: &'static str,
}

/// Attention, 8 heads of 64, forward, differentiated, and causal.
#[allow(dead_code)]
pub const ATTENTION: [Program; 4] = [
    Program { name: "forward", file: "attention.pf", function: None, jvp: &[], dims: "B=1,H=8,I=1024,J=1024,D=64" },
    Program { name: "jvp", file: "attention.pf", function: None, jvp: &["q,k,v"], dims: "B=1,H=8,I=1024,J=1024,D=64" },
    Program { name: "jvp along q", file: "attention.pf", function: None, jvp: &["q"], dims: "B=1,H=8,I=1024,J=1024,D=64" },
    Program { name: "causal jvp", file: "attention_variants.pf", function: Some("causal"), jvp: &["q,k,v"], dims: "B=1,H=8,I=1024,J=1024,D=64,E=64" },
];

/// Programs without attention in sight.
#[allow(dead_code)]
pub const LAYERS: [Program; 3] = [
    Program { name: "cross entropy of a linear layer, jvp", file: "cross_entropy.pf", function: None, jvp: &["x,w"], dims: "M=512,K=256,V=8192" },
    Program { name: "gelu of a linear layer, jvp", file: "gelu_linear.pf", function: None, jvp: &["x,w"], dims: "M=512,K=512,N=2048" },
    Program { name: "norm and modulation, jvp", file: "norm_modulate.pf", function: None, jvp: &["x"], dims: "B=2,N=2048,D=1536" },
];

impl Program {
    /// The function, differentiated, from its text.
    pub fn load(&self) -> Function {
        let file = format!("{}/examples/{}", env!("CARGO_MANIFEST_DIR"), self.file).into();
        let source = Source { file, function: self.function.map(String::from), transforms: Transforms(self.jvp.iter().map(|j| Transform::Jvp(names(j))).collect()) };
        source.load().unwrap_or_else(|e| panic!("{e}"))
    }
    /// Its sizes.
    pub fn bindings(&self) -> Bindings {
        dims(&[self.dims.to_string()]).unwrap_or_else(|e| panic!("{e}"))
    }
    /// Times the kernels on the CPU in f32; flops and bytes stand beside the time as elements and bytes a second.
    #[allow(dead_code)]
    pub fn time(&self, group: &mut BenchmarkGroup<'_, WallTime>, pool: &Pool) {
        let (f, b) = (self.load(), self.bindings());
        let compiled = machine::cpu(&f, &b, DType::F32, &Cache::new(None)).unwrap_or_else(|e| panic!("{e}"));
        let mut random = Random(1);
        let draw = |p: &ir::graph::Port| {
            let t = random.draw(&f, p.var, &b).unwrap_or_else(|e| panic!("{e}"));
            if t.dtype().is_float() { t.convert(DType::F32) } else { t }
        };
        let params: Vec<Tensor> = f.params.iter().map(draw).collect();
        let execution = compiled.execution(&b, pool.threads()).unwrap_or_else(|e| panic!("{e}"));
        let mut results = execution.results().unwrap_or_else(|e| panic!("{e}"));
        let (params, mut results): (Vec<&Tensor>, Vec<&mut Tensor>) = (params.iter().collect(), results.iter_mut().collect());
        let costs: Vec<_> = compiled.sequence.programs.iter().filter_map(|p| ir::tile::cost::cost(p, &b).ok()).collect();
        let (flops, bytes) = costs.iter().fold((0u64, 0u64), |(f, b), c| (f + c.flops as u64, b + c.bytes() as u64));
        group.throughput(Throughput::ElementsAndBytes { elements: flops, bytes });
        group.bench_function(self.name, |x| x.iter(|| execution.run_into(pool, &params, &mut results).unwrap_or_else(|e| panic!("{e}"))));
    }
}

/// Short runs: these are for a look after a change, `pushforward bench` and benches/peer.py are for statements.
pub fn criterion() -> Criterion {
    Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).without_plots().configure_from_args()
}
