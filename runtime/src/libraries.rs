//! Whether routines of a vendor's library may take the place of generated kernels.

/// When they do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Libraries {
    /// Never: which bits come out depends on nothing that was measured.
    #[default]
    Never,
    /// Where a routine is faster on the device, at the sizes of the plan.
    Measured,
    /// Wherever there is one.
    Always,
}

impl Libraries {
    /// Names, as the command line has them.
    pub const NAMES: [&str; 3] = ["never", "measured", "always"];
    /// That of a name.
    pub fn named(name: &str) -> Option<Libraries> {
        [Libraries::Never, Libraries::Measured, Libraries::Always].into_iter().zip(Libraries::NAMES).find(|(_, n)| *n == name).map(|(l, _)| l)
    }
}
