//! CUDA devices as the driver tells of them, from a program that links no compiler.
//! `cargo run --release -p pushforward-runtime --features cuda --example devices`

fn main() {
    match runtime::cuda::devices() {
        Ok(found) => println!("{found:#?}"),
        Err(why) => println!("{why}"),
    }
}
