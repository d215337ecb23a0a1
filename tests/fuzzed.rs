//! The targets of `tests/fuzz` on chance input, the same in every run: what a fuzzer would find within seconds.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

#[path = "fuzz/targets/orca_trailer.rs"]
mod orca_trailer;
#[path = "fuzz/targets/picker.rs"]
mod picker;

use lookaside_proto::xds::data::orca::v3::OrcaLoadReport;
use lookaside_sdk::picker::Rng;
use prost::Message as _;

fn bytes(rng: &mut Rng, count: u64) -> Vec<u8> {
    (0..count).map(|_| rng.next_u64() as u8).collect()
}

/// Of every kind that there is, and some that mean something.
fn double(rng: &mut Rng) -> f64 {
    match rng.below(8) {
        0 => f64::from_bits(rng.next_u64()),
        1 => f64::NAN,
        2 => f64::INFINITY,
        3 => -1.0,
        4 => rng.below(1 << 40) as f64,
        _ => rng.below(4_000) as f64 / 8.0,
    }
}

fn report(rng: &mut Rng) -> OrcaLoadReport {
    let names = ["rif", "rif", "rie", "", "r", "riff", "queue"];
    let mut map = |entries: u64| {
        let entry = |_| (names[rng.below(names.len() as u64) as usize].to_owned(), double(rng));
        (0..entries).map(entry).collect()
    };
    OrcaLoadReport {
        request_cost: map(2),
        utilization: map(3),
        named_metrics: map(3),
        cpu_utilization: 0.5,
        rps_fractional: double(rng),
        ..OrcaLoadReport::default()
    }
}

/// A field of which the standard knows nothing, or one that it knows.
fn foreign(rng: &mut Rng) -> Vec<u8> {
    let number = 10 + rng.below(3) as u8;
    let length = rng.below(100) as u8;
    match rng.below(4) {
        0 => [vec![number << 3, 0x80 | length, 1]].concat(),
        1 => [vec![number << 3 | 1], bytes(rng, 8)].concat(),
        2 => [vec![number << 3 | 2, length], bytes(rng, length.into())].concat(),
        _ => [vec![number << 3 | 5], bytes(rng, 4)].concat(),
    }
}

#[test]
fn the_trailer_parser_reads_what_the_generated_decoder_reads() {
    let mut rng = Rng::from_seed(1);
    let mut told = 0;
    for _ in 0..20_000 {
        let parts = [report(&mut rng).encode_to_vec(), foreign(&mut rng), report(&mut rng).encode_to_vec()];
        let wire = parts.concat();
        let expected = orca_trailer::expected(&OrcaLoadReport::decode(&*wire).unwrap());
        assert_eq!(orca_trailer::read(&wire), expected, "{wire:?}");
        told += u32::from(expected.is_some());
        let mut broken = wire;
        for _ in 0..=rng.below(3) {
            let at = rng.below(broken.len() as u64) as usize;
            broken[at] ^= 1 << rng.below(8);
        }
        broken.truncate(rng.below(2 * broken.len() as u64) as usize);
        orca_trailer::run(&broken);
        let count = rng.below(64);
        orca_trailer::run(&bytes(&mut rng, count));
    }
    assert!(told > 5_000, "{told}");
}

#[test]
fn a_picker_that_is_told_anything_has_an_endpoint_whenever_one_is_fit() {
    let mut rng = Rng::from_seed(1);
    for _ in 0..400 {
        let count = rng.below(4_000);
        picker::run(&bytes(&mut rng, count));
    }
}
