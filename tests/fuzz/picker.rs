//! The picker, told anything in any order.
#![no_main]

#[path = "targets/picker.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
