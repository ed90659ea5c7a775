//! Any bytes give an error or a history: `cargo +nightly fuzz run json` in jepsen-like-checks/.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    jepsen_like_checks::formats::survives(jepsen_like_checks::formats::json::Reader::new(bytes), bytes.len());
    let _ = jepsen_like_checks::formats::read(&mut jepsen_like_checks::formats::json::Reader::new(bytes));
});
