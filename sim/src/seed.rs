//! Split random streams: one generator for each purpose, all derived from the run's seed.
//!
//! A purpose is a label such as `net/n1/n2` or `disk/n3`. Streams of different labels share nothing: a run in
//! which one of them draws more often changes that one alone.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The generator of one purpose.
pub type Stream = Xoshiro256PlusPlus;

/// The seed of one purpose: for handing on, for instance to the program of a host.
pub fn derive(run_seed: u64, purpose: &str) -> u64 {
    xxh3_64_with_seed(purpose.as_bytes(), run_seed)
}

/// The generator of one purpose.
pub fn stream(run_seed: u64, purpose: &str) -> Stream {
    Stream::seed_from_u64(derive(run_seed, purpose))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn a_stream_hangs_on_the_seed_and_the_purpose_and_nothing_else() {
        let first = |seed, purpose| stream(seed, purpose).next_u64();
        assert_eq!(first(7, "net/n1/n2"), first(7, "net/n1/n2"));
        assert_ne!(first(7, "net/n1/n2"), first(7, "net/n2/n1"));
        assert_ne!(first(7, "net/n1/n2"), first(8, "net/n1/n2"));
    }
}
