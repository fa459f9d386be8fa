//! Block programs to code for a CUDA device, through the cache: an assembled module where `ptxas` is found, on all cores, else PTX, which the driver compiles one after the other.

use codegen::GpuTarget;
use codegen::assembler::Assembler;
use codegen::nvptx;
use ir::artifact::GpuArtifact;
use ir::dim::Bindings;
use ir::tile::Program;
use runtime::cache::{Cache, Source, key};

use super::kernels::{cores, each_on};

/// Makes code for one architecture.
pub struct Maker {
    target: GpuTarget,
    /// With its release.
    assembler: Option<(Assembler, String)>,
    cache: Cache,
}

impl Maker {
    /// For `target`; assembled only where `exact` says that the device is of that architecture and not of a later one.
    pub fn new(target: GpuTarget, exact: bool, cache: Cache) -> Maker {
        let found = || Assembler::find().and_then(|a| a.version().ok().map(|v| (a, v)));
        Maker { target, assembler: if exact { found() } else { None }, cache }
    }
    /// By an assembler that is given, or none.
    pub fn with(target: GpuTarget, assembler: Option<(Assembler, String)>, cache: Cache) -> Maker {
        Maker { target, assembler, cache }
    }
    /// What is compiled for.
    pub fn target(&self) -> &GpuTarget {
        &self.target
    }
    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }
    /// Code of every program by default schedules for sizes `dims`, and where it came from.
    ///
    /// # Errors
    /// The first program that has no form, and why. What the assembler does not take is none: the driver may.
    pub fn code(&self, programs: &[Program], dims: &Bindings) -> Result<Vec<(GpuArtifact, Source)>, String> {
        // A default schedule may depend on sizes.
        let sizes: Vec<String> = dims.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let by = self.assembler.as_ref().map_or("PTX", |a| &a.1);
        let made_by = format!("{:?} {} {by} {}", self.target, sizes.join(","), codegen::BUILD);
        each_on(cores(), programs, |p| {
            let build = || nvptx::compile_fitting(p, &self.target, dims, self.assembler.as_ref().map(|a| &a.0), false).map(|k| self.artifact(k)).map_err(|e| e.to_string());
            let (code, source) = self.cache.get_or_build(&key(p, &made_by), build)?;
            if let Source::Rebuilt(why) = &source {
                eprintln!("note: {why}");
            }
            Ok((code, source))
        })
    }
    fn artifact(&self, nvptx::Fitted { kernel, assembled }: nvptx::Fitted) -> GpuArtifact {
        let code = match assembled {
            Some(Ok(done)) => done.cubin,
            Some(Err(why)) => {
                let release = self.assembler.as_ref().map_or("", |a| &a.1);
                eprintln!("note: {} is left to the driver: ptxas {release}: {}", kernel.signature.symbol, why.lines().next().unwrap_or(""));
                kernel.ptx.into_bytes()
            }
            None => kernel.ptx.into_bytes(),
        };
        GpuArtifact { code, signature: kernel.signature }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::types::DType;

    #[test]
    fn what_was_made_once_comes_from_the_cache_and_is_assembled_where_ptxas_is() {
        let f = ir::text::parse("fn f(x: f32[M,K], w: f32[N,K]) -> (y: f32[M,N]) {\n  y = contract(\"mk,nk->mn\", x, w)\n}\n").expect("a program");
        let dims: Bindings = [("M", 70), ("K", 64), ("N", 48)].into_iter().map(|(n, k)| (n.into(), k)).collect();
        let programs = passes::fuse::sequence(f.functions.last().expect("a function"), &super::super::gpu::fused(&dims, DType::BF16)).expect("fused").programs;
        let folder = tempfile::tempdir().expect("a folder");
        let cache = || Cache::new(Some(folder.path().to_path_buf()));
        let target = || GpuTarget::named("sm_90a").expect("a target");
        let text = Maker::with(target(), None, cache());
        let first = text.code(&programs, &dims).expect("code");
        assert!(first.iter().all(|(c, s)| *s == Source::Built && c.code.windows(8).any(|w| w == b".version")));
        assert_eq!(text.code(&programs, &dims).expect("code").into_iter().map(|(c, s)| (c, s == Source::Hit)).collect::<Vec<_>>(), first.into_iter().map(|(c, _)| (c, true)).collect::<Vec<_>>());
        // Machine code has an entry of its own, and text stays what it was.
        let Maker { assembler: Some(found), .. } = Maker::new(target(), true, cache()) else { return };
        let machine = Maker::with(target(), Some(found), cache());
        for source in [Source::Built, Source::Hit] {
            assert!(machine.code(&programs, &dims).expect("code").iter().all(|(c, s)| *s == source && c.code.starts_with(b"\x7fELF")));
        }
    }
}
