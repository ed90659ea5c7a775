//! The headers of a request. The body, with all that it checks, is the library's.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    ringdove::gateway::fuzzing::headers(input);
});
