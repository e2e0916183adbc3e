#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| adit::fuzz::link(data));
