//! The last known good state on disk: one line that says what follows, how long it is and its checksum, and one line of
//! JSON. Two lines, so that `head -1` and `jq` are all it takes to look at one.

use std::{io, path::Path};

use lookaside_core::kept::Kept;
use serde::{Deserialize, Serialize};

use super::disk::{self, Error, Fault};
use crate::{driver::unix_ms, limits::SNAPSHOT_FILE_BYTES_MAX};

/// Counts up when a field changes its meaning. Fields may come and go without that: those that are missing have defaults.
const FORMAT: u32 = 1;

/// What our files say they are.
const NAME: &str = "snapshot";

/// A longer first line is not ours.
const HEADER_BYTES_MAX: usize = 4 << 10;

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    lookaside: String,
    format: u32,
    /// Of the program that wrote it, its node, and when: for people.
    #[serde(default)]
    version: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    written_at_unix_ms: u64,
    /// Of the second line, without its end.
    bytes: u64,
    crc32: u32,
}

/// The state that is kept there, if any is.
pub(super) fn load(path: &Path) -> Result<Option<Kept>, Error> {
    let loaded = disk::load(path, SNAPSHOT_FILE_BYTES_MAX, decode)?;
    Ok(loaded.map(|(header, kept)| {
        let endpoints: usize = kept.services.values().map(|service| service.endpoints.len()).sum();
        let age_seconds = unix_ms().saturating_sub(header.written_at_unix_ms) / 1000;
        let (services, node) = (kept.services.len(), header.node);
        tracing::info!(services, endpoints, node, age_seconds, "beginning with what the last start had kept");
        kept
    }))
}

/// The bytes to be written.
pub(super) fn encode(kept: &Kept, node: &str) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(kept).map_err(io::Error::other)?;
    let header = Header {
        lookaside: NAME.to_owned(),
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: node.to_owned(),
        written_at_unix_ms: unix_ms(),
        bytes: body.len() as u64,
        crc32: crc32fast::hash(&body),
    };
    let mut bytes = serde_json::to_vec(&header).map_err(io::Error::other)?;
    bytes.push(b'\n');
    bytes.extend(body);
    bytes.push(b'\n');
    if bytes.len() as u64 > SNAPSHOT_FILE_BYTES_MAX {
        let words = format!("it would have {} bytes, at most {SNAPSHOT_FILE_BYTES_MAX} are read again", bytes.len());
        return Err(io::Error::other(words));
    }
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<(Header, Kept), Fault> {
    let damaged = |words: &str| Fault::Damaged(words.to_owned());
    let (header, body) = split(bytes)?;
    let wanted = header.bytes.saturating_add(1);
    match body {
        [body @ .., b'\n'] if body.len() as u64 == header.bytes => {
            if crc32fast::hash(body) != header.crc32 {
                return Err(damaged("its checksum does not fit"));
            }
            // Ours by the checksum, and yet not what this version writes.
            let kept = serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
            Ok((header, kept))
        }
        short if (short.len() as u64) < wanted => Err(Fault::Truncated { bytes: short.len() as u64, wanted }),
        _ => Err(damaged("it is longer than it says")),
    }
}

/// The first line, if it is ours, and the rest.
fn split(bytes: &[u8]) -> Result<(Header, &[u8]), Fault> {
    #[derive(Deserialize)]
    struct Name {
        lookaside: String,
        format: u32,
    }
    let foreign = |words: &str| Fault::Foreign(words.to_owned());
    let Some(end) = bytes.iter().take(HEADER_BYTES_MAX).position(|byte| *byte == b'\n') else {
        let is_ours = serde_json::to_string(NAME)
            .is_ok_and(|name| bytes.starts_with(format!("{{\"lookaside\":{name}").as_bytes()));
        if bytes.is_empty() || is_ours {
            return Err(Fault::Truncated { bytes: bytes.len() as u64, wanted: bytes.len() as u64 + 1 });
        }
        return Err(foreign("its first line is no header"));
    };
    let (line, body) = bytes.split_at(end);
    // Alone at first: a newer format may look different in all else.
    let name: Name = serde_json::from_slice(line).map_err(|_| foreign("its first line is no header"))?;
    if name.lookaside != NAME || name.format == 0 {
        return Err(foreign("its first line names something else"));
    }
    if name.format > FORMAT {
        return Err(Fault::Newer { format: name.format, max: FORMAT });
    }
    let header = serde_json::from_slice(line).map_err(|error| Fault::Damaged(format!("its first line: {error}")))?;
    Ok((header, body.get(1..).unwrap_or_default()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As format 1 wrote it first. It stays readable for as long as the format is 1.
    pub(crate) const OLDEST: &str = concat!(
        r#"{"lookaside":"snapshot","format":1,"version":"0.1.0","node":"lb-0","writtenAtUnixMs":1,"bytes":476,"crc32":1256256967}"#,
        "\n",
        r#"{"services":{"greeter":{"settling":false,"answered":["file"],"endpoints":["#,
        r#"{"spec":{"address":"10.0.0.1:1","instance":"a","incarnation":3,"locality":"eu/a","priority":0,"weight":100,"tls_name":""},"#,
        r#""registered":true,"health":"usable","trusted":true,"warming_permille":250},"#,
        r#"{"spec":{"address":"10.0.0.2:1","instance":"","incarnation":0,"locality":"","priority":1,"weight":50,"tls_name":"b"},"#,
        r#""listed_by":["file"],"health":{"unusable":{"code":"HealthTimeout","detail":"late"}}}]}}}"#,
        "\n",
    );

    fn fault(bytes: &[u8]) -> Fault {
        decode(bytes).map(|_| ()).unwrap_err()
    }

    /// As this version writes it.
    fn good() -> Vec<u8> {
        encode(&decode(OLDEST.as_bytes()).unwrap().1, "lb-0").unwrap()
    }

    #[test]
    fn what_the_first_version_of_the_format_wrote_is_read() {
        let (header, kept) = decode(OLDEST.as_bytes()).unwrap();
        assert_eq!((header.node.as_str(), header.written_at_unix_ms), ("lb-0", 1));
        let service = kept.services.values().next().unwrap();
        assert_eq!((service.endpoints.len(), service.answered.len(), service.settling), (2, 1, false));
        assert!(service.endpoints[0].registered && service.endpoints[1].listed_by.len() == 1);
    }

    #[test]
    fn every_way_to_be_wrong_has_its_reason() {
        let good = good();
        assert!(decode(&good).is_ok());
        for (bytes, is) in [
            (&b""[..], "truncated"),
            (b"\n", "foreign"),
            (b"{}\n{}\n", "foreign"),
            (b"{\"lookaside\":\"cache\",\"format\":1}\n{}\n", "foreign"),
            (b"\x7fELF\x02\x01\x01", "foreign"),
            (b"{\"lookaside\":\"snapshot\",\"format\":2,\"what\":[]}\nxyz", "newer"),
            (b"{\"lookaside\":\"snapshot\",\"format\":1}\n{}\n", "damaged"),
        ] {
            let error = fault(bytes);
            let found = match &error {
                Fault::Foreign(_) => "foreign",
                Fault::Newer { .. } => "newer",
                Fault::Truncated { .. } => "truncated",
                Fault::Damaged(_) => "damaged",
                Fault::Unreadable(_) | Fault::TooLarge { .. } => "of the disk",
            };
            assert_eq!(found, is, "{error}: {}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn of_a_file_cut_anywhere_or_with_any_bit_turned_nothing_is_used() {
        let good = good();
        for length in 0..good.len() {
            decode(&good[..length]).map(|_| ()).unwrap_err();
        }
        let header = good.iter().position(|byte| *byte == b'\n').unwrap();
        // The header's own words for people (version, node, time) may be damaged without harm: no state is in them.
        for at in header + 1..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            decode(&bad).map(|_| ()).unwrap_err();
        }
        let longer = [good.as_slice(), b"x"].concat();
        assert!(matches!(fault(&longer), Fault::Damaged(_)));
    }
}
