//! What a network's parts are computed in: one table. Builders ask it for every value's type and place no conversion of their own, and
//! tangents and cotangents inherit it, since a conversion's derivative is the same conversion: primal and tangent share one recipe.
//!
//! | part | run in f64 | in f32 | in bf16 | why |
//! |---|---|---|---|---|
//! | `Time` | f64 | f64 | f64 | Wan's times reach 1000, where f32 turns a sinusoid's argument by 6e-5, and bf16 has steps of 4 |
//! | `Angle` | f64 | f64 | f64 | positions times frequencies, as diffusers makes its table |
//! | `Latent` | f64 | f32 | f32 | what samplers and losses add up |
//! | `Stream` | f64 | f32 | f32 | the residual stream, as the original Wan leaves it |
//! | `Norm` | f64 | f32 | f32 | statistics, modulation, gates, time embeddings |
//! | `Vector` | f64 | f32 | f32 | biases, norms' weights, modulation tables: as many bytes as a rounding error |
//! | `Operand` | f64 | f32 | bf16 | what a matrix unit reads: activations |
//! | `Matrix` | f64 | f32 | bf16 | what a matrix unit reads: weights |

use ir::types::DType;

/// A kind of value, as the table has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The timestep and its sinusoid.
    Time,
    /// Rotary angles, their cosines and sines.
    Angle,
    /// Inputs and the result.
    Latent,
    /// The residual stream.
    Stream,
    /// Norms, modulation, gates, time embeddings.
    Norm,
    /// Parameters with one long axis, and time embedders.
    Vector,
    /// Operands of contractions.
    Operand,
    /// Parameters of contractions.
    Matrix,
}

/// Each part's type in a run in f64, f32 and bf16.
pub const TABLE: [(Part, [DType; 3]); 8] = {
    use DType::{BF16, F32, F64};
    [
        (Part::Time, [F64, F64, F64]),
        (Part::Angle, [F64, F64, F64]),
        (Part::Latent, [F64, F32, F32]),
        (Part::Stream, [F64, F32, F32]),
        (Part::Norm, [F64, F32, F32]),
        (Part::Vector, [F64, F32, F32]),
        (Part::Operand, [F64, F32, BF16]),
        (Part::Matrix, [F64, F32, BF16]),
    ]
};

/// A column of [`TABLE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Precision(usize);

impl Precision {
    /// Everything in f64.
    pub const F64: Precision = Precision(0);
    /// f32, time in f64.
    pub const F32: Precision = Precision(1);
    /// Matrix products in bf16.
    pub const BF16: Precision = Precision(2);

    /// The column for a run in `dtype`.
    ///
    /// # Errors
    /// A type that the table has no column for.
    pub fn of(dtype: DType) -> Result<Precision, String> {
        match dtype {
            DType::F64 => Ok(Precision::F64),
            DType::F32 => Ok(Precision::F32),
            DType::BF16 => Ok(Precision::BF16),
            other => Err(format!("networks run in f64, f32 or bf16, not in {other}")),
        }
    }
    /// The type of `part`.
    pub fn dtype(self, part: Part) -> DType {
        TABLE.iter().find(|(p, _)| *p == part).map_or(DType::F32, |(_, columns)| columns[self.0])
    }
}
