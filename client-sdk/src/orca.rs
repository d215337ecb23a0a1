//! What a response tells of the load at its endpoint: the requests in flight there, out of the standard's report in its head or
//! its trailers (gRPC A51). Read by hand, as the bytes pass by: the generated type would fill five maps per response to give one
//! number. Whatever else stands there is skipped, and what cannot be read tells nothing.

use http::{HeaderMap, HeaderName};

/// The header or trailer of the standard.
pub(crate) const TRAILER: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");
/// What the metric is called: requests in flight, without the one that the report rides on.
pub(crate) const RIF: &str = "rif";

/// A longer value is not looked at: a report with eight names of 64 bytes has 900.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// `named_metrics`, a map from names to doubles.
const NAMED_METRICS: u64 = 8;
const MAP_KEY: u64 = 1;
const MAP_VALUE: u64 = 2;

/// Kinds of values on the wire; groups, which nobody writes any more, are among those that cannot be read.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// Requests in flight that these headers or trailers tell of; `None` when they do not.
pub(crate) fn rif_of(headers: &HeaderMap) -> Option<u32> {
    // Each of those on the way may have added its own; whoever is nearest wrote last.
    rif(headers.get_all(TRAILER).iter().next_back()?.as_bytes())
}

/// The metric `rif` in the value of `endpoint-load-metrics-bin`: base64, padded or not, of an `xds.data.orca.v3.OrcaLoadReport`;
/// of several such values between commas the last. To the nearest whole number, and the largest that fits; `None` when there is
/// none, when it is negative or not a number, and when the value cannot be read.
pub fn rif(value: &[u8]) -> Option<u32> {
    // A comma that is further from the end would leave too much behind it.
    let end = value.get(value.len().saturating_sub(VALUE_BYTES_MAX + 1)..)?;
    let last = end.rsplit(|byte| *byte == b',').next()?.trim_ascii();
    let mut report = Reader::new(last.strip_suffix(b"==").or(last.strip_suffix(b"=")).unwrap_or(last))?;
    let mut found = None;
    while report.left > 0 {
        match report.tag()? {
            (NAMED_METRICS, LENGTH) => {
                // Of two entries of one name the last counts, as in every map on the wire.
                found = report.entry()?.or(found);
            }
            (_, kind) => report.skip(kind)?,
        }
    }
    let told = found?;
    // The cast saturates.
    (told.is_finite() && told >= 0.0).then(|| told.round() as u32)
}

/// Bytes out of base64, one after the other. Every read takes from what is left, so that no length that somebody made up
/// makes work.
struct Reader<'a> {
    letters: std::slice::Iter<'a, u8>,
    /// Bits read and not given out yet, and how many.
    held: u32,
    held_bits: u32,
    /// Bytes to come.
    left: usize,
}

impl<'a> Reader<'a> {
    fn new(letters: &'a [u8]) -> Option<Self> {
        // One letter more than whole groups is less than a byte.
        let is_whole = letters.len() % 4 != 1 && letters.len() <= VALUE_BYTES_MAX;
        is_whole.then(|| Self { letters: letters.iter(), held: 0, held_bits: 0, left: letters.len() * 3 / 4 })
    }

    fn byte(&mut self) -> Option<u8> {
        self.left = self.left.checked_sub(1)?;
        while self.held_bits < 8 {
            let bits = *SIX_BITS.get(usize::from(*self.letters.next()?))?;
            if bits == NO_LETTER {
                return None;
            }
            self.held = (self.held << 6) | u32::from(bits);
            self.held_bits += 6;
        }
        self.held_bits -= 8;
        // The low eight of those on top.
        Some((self.held >> self.held_bits) as u8)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            // Of the tenth byte one bit fits.
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A field's number and the kind of its value.
    fn tag(&mut self) -> Option<(u64, u64)> {
        let tag = self.varint().filter(|tag| *tag <= u64::from(u32::MAX))?;
        // There is no field 0.
        (tag >> 3 > 0).then_some((tag >> 3, tag & 7))
    }

    /// A length of what follows.
    fn length(&mut self) -> Option<usize> {
        let length = usize::try_from(self.varint()?).ok()?;
        (length <= self.left).then_some(length)
    }

    fn skip(&mut self, kind: u64) -> Option<()> {
        let bytes = match kind {
            VARINT => return self.varint().map(|_| ()),
            EIGHT_BYTES => 8,
            LENGTH => self.length()?,
            FOUR_BYTES => 4,
            _ => return None,
        };
        (0..bytes).try_for_each(|_| self.byte().map(|_| ()))
    }

    /// One entry of the map: its value, if its name is ours.
    fn entry(&mut self) -> Option<Option<f64>> {
        let length = self.length()?;
        let after = self.left - length;
        let (mut is_ours, mut value) = (false, 0.0);
        while self.left > after {
            match self.tag()? {
                (MAP_KEY, LENGTH) => is_ours = self.is_ours()?,
                (MAP_VALUE, EIGHT_BYTES) => {
                    let mut bytes = [0; 8];
                    for byte in &mut bytes {
                        *byte = self.byte()?;
                    }
                    value = f64::from_le_bytes(bytes);
                }
                (MAP_KEY | MAP_VALUE, _) => return None,
                (_, kind) => self.skip(kind)?,
            }
        }
        // What reads on behind its end is no entry.
        (self.left == after).then_some(is_ours.then_some(value))
    }

    fn is_ours(&mut self) -> Option<bool> {
        let length = self.length()?;
        let mut is_ours = length == RIF.len();
        for at in 0..length {
            is_ours &= Some(&self.byte()?) == RIF.as_bytes().get(at);
        }
        Some(is_ours)
    }
}

const NO_LETTER: u8 = 0xFF;

/// What the letters of base64 stand for.
const SIX_BITS: [u8; 256] = {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut table = [NO_LETTER; 256];
    let mut bits = 0;
    while bits < letters.len() {
        table[letters[bits] as usize] = bits as u8;
        bits += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use base64::{
        Engine as _,
        engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
    };
    use http::HeaderValue;
    use lookaside_proto::xds::data::orca::v3::OrcaLoadReport;
    use prost::Message as _;

    use super::*;

    fn report(metrics: &[(&str, f64)]) -> Vec<u8> {
        let named_metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let utilization = [("db".to_owned(), 0.5), (String::new(), 2.0)].into();
        OrcaLoadReport { cpu_utilization: 0.25, utilization, named_metrics, eps: 1.5, ..Default::default() }
            .encode_to_vec()
    }

    fn read(report: &[u8]) -> Option<u32> {
        let value = rif(STANDARD_NO_PAD.encode(report).as_bytes());
        assert_eq!(rif(STANDARD.encode(report).as_bytes()), value, "padding means nothing");
        value
    }

    #[test]
    fn requests_in_flight_are_read_among_whatever_else_is_told() {
        assert_eq!(read(&report(&[("rif", 7.0)])), Some(7));
        assert_eq!(read(&report(&[("rig", 1.0), ("ri", 2.0), ("rif", 0.0), ("riff", 3.0), ("", 4.0)])), Some(0));
        assert_eq!(read(&report(&[("rps", 7.0)])), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn what_is_no_number_of_requests_tells_nothing_and_too_many_are_the_most() {
        for nothing in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -1e-9, f64::MIN] {
            assert_eq!(read(&report(&[("rif", nothing)])), None, "{nothing}");
        }
        for (told, read_as) in
            [(-0.0, 0), (0.49, 0), (0.5, 1), (2.6, 3), (4_294_967_295.0, u32::MAX), (1e300, u32::MAX)]
        {
            assert_eq!(read(&report(&[("rif", told)])), Some(read_as), "{told}");
        }
    }

    #[test]
    fn of_several_words_the_last_counts() {
        let [first, last] = [3.0, 5.0].map(|told| report(&[("rif", told)]));
        assert_eq!(read(&[first.clone(), last.clone()].concat()), Some(5));
        assert_eq!(read(&[first.clone(), report(&[("x", 1.0)])].concat()), Some(3));
        let [first, last] = [first, last].map(|report| STANDARD.encode(report));
        assert_eq!(rif(format!("{first},{last}").as_bytes()), Some(5));
        assert_eq!(rif(format!("{last}, {first} ").as_bytes()), Some(3));
        assert_eq!(rif(format!("{first},").as_bytes()), None);
        let mut headers = HeaderMap::new();
        assert_eq!(rif_of(&headers), None);
        for value in [&first, &last] {
            headers.append(TRAILER, HeaderValue::from_str(value).unwrap());
        }
        assert_eq!(rif_of(&headers), Some(5));
    }

    #[test]
    fn an_entry_may_leave_out_its_value_and_no_more_than_that() {
        assert_eq!(read(b"\x42\x05\x0a\x03rif"), Some(0));
        assert_eq!(read(b"\x42\x00"), None);
        // A name and a value of other kinds, an end before that of what is in it; a group, a kind that there is not, field 0; a
        // length and a number without end.
        let in_an_entry = [&b"\x42\x02\x08\x03"[..], b"\x42\x07\x0a\x03rif\x10\x01", b"\x42\x04\x0a\x03rif"];
        let outside = [&b"\x0b\x0c"[..], b"\x0f", b"\x00\x00", b"\x42\xff\xff\xff\xff\x0f", &[0xFF; 11]];
        for wrong in in_an_entry.into_iter().chain(outside) {
            assert_eq!(read(&[wrong, &report(&[("rif", 1.0)])].concat()), None, "{wrong:?}");
        }
    }

    #[test]
    fn whatever_is_cut_short_or_no_base64_at_all_tells_nothing() {
        let whole = STANDARD_NO_PAD.encode(
            OrcaLoadReport { named_metrics: [("rif".to_owned(), 7.0)].into(), ..Default::default() }.encode_to_vec(),
        );
        assert_eq!(rif(whole.as_bytes()), Some(7));
        for cut in 0..whole.len() {
            assert_eq!(rif(&whole.as_bytes()[..cut]), None, "{cut}");
            let mut broken = whole.clone().into_bytes();
            broken[cut] = [b'-', b'=', b' ', 0, 0x80, 0xFF][cut % 6];
            assert_eq!(rif(&broken), None, "{cut}");
        }
    }

    #[test]
    fn a_value_of_a_megabyte_is_not_looked_at() {
        let long = vec![b'A'; 1 << 20];
        assert_eq!(rif(&long), None);
        assert_eq!(rif(&[b','; 1 << 20]), None);
        // But for its last part, if that is short.
        let told = STANDARD.encode(report(&[("rif", 9.0)]));
        assert_eq!(rif(&[&long, b",".as_slice(), told.as_bytes()].concat()), Some(9));
    }
}
