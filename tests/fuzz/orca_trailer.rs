//! The parser of the load that responses carry.
#![no_main]

#[path = "targets/orca_trailer.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
