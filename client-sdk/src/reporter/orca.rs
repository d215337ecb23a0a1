//! Load in the standard's words: the report that rides on every response, and the one that can be pulled.
//!
//! The header value is written by hand instead of through the generated type, whose maps would cost an allocation per
//! response; a test holds both against each other.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use futures_util::{Stream, stream};
use http::HeaderValue;
use lookaside_proto::xds::{
    data::orca::v3::OrcaLoadReport,
    service::orca::v3::{OrcaLoadReportRequest, open_rca_service_server::OpenRcaService},
};
use tonic::{Request, Response, Status};

use super::counters::{Counters, Momentary};
use crate::orca::RIF;

/// Named shares beyond this many are refused: each rides on every response.
pub(crate) const UTILIZATION_NAMES_MAX: usize = 8;

/// Longest name of a share, bytes.
pub(crate) const UTILIZATION_NAME_BYTES_MAX: usize = 64;

// Five doubles with their tags, the `rif` entry, and the named shares: tag, length, key and value of each.
const REPORT_BYTES_MAX: usize = 5 * 9 + 16 + UTILIZATION_NAMES_MAX * (UTILIZATION_NAME_BYTES_MAX + 13);
const ENCODED_BYTES_MAX: usize = REPORT_BYTES_MAX.div_ceil(3) * 4;

/// Time between pulled reports when the puller names none.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);

/// Shorter wishes are raised to this.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Longer ones are lowered to this: load an hour old is no load.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// Shares that the application names.
#[derive(Debug, Default)]
pub(crate) struct Named {
    shares: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    pairs: Vec<(String, f64)>,
    // As they stand on the wire: they are written on every response and change seldom.
    encoded: Arc<[u8]>,
}

impl Named {
    /// Sets one share. False when the name is too long, or new and one too many.
    pub(crate) fn set(&self, name: &str, share: f64) -> bool {
        if name.is_empty() || name.len() > UTILIZATION_NAME_BYTES_MAX {
            return false;
        }
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let Shares { pairs, encoded } = &mut *shares;
        match pairs.iter().position(|(known, _)| known == name) {
            Some(index) => pairs[index].1 = share,
            None if pairs.len() >= UTILIZATION_NAMES_MAX => return false,
            None => pairs.push((name.to_owned(), share)),
        }
        let mut bytes = Vec::new();
        for (name, share) in pairs.iter() {
            // `utilization` is field 5, a map.
            map_entry(5, name, *share, |part| bytes.extend_from_slice(part));
        }
        *encoded = bytes.into();
        true
    }

    pub(crate) fn pairs(&self) -> Vec<(String, f64)> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).pairs.clone()
    }

    fn encoded(&self) -> Arc<[u8]> {
        Arc::clone(&self.shares.lock().unwrap_or_else(PoisonError::into_inner).encoded)
    }
}

fn map_entry(field: u8, name: &str, value: f64, mut write: impl FnMut(&[u8])) {
    // Names are at most 64 bytes, so both lengths are one byte.
    let name_bytes = name.len() as u8;
    write(&[field << 3 | 2, name_bytes + 11, 0x0a, name_bytes]);
    write(name.as_bytes());
    write(&[0x11]);
    write(&value.to_le_bytes());
}

struct Fixed {
    bytes: [u8; REPORT_BYTES_MAX],
    length: usize,
}

impl Fixed {
    fn write(&mut self, part: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + part.len()) {
            room.copy_from_slice(part);
            self.length += part.len();
        }
    }

    // A zero is "not reported" to every reader, so it is left out.
    fn double(&mut self, field: u8, value: f64) {
        if value != 0.0 {
            self.write(&[field << 3 | 1]);
            self.write(&value.to_le_bytes());
        }
    }
}

/// The value of the trailer: binary as gRPC writes it, base64 without padding. One allocation, the value itself.
pub(crate) fn header_value(load: &Momentary, named: &Named) -> HeaderValue {
    let mut report = Fixed { bytes: [0; REPORT_BYTES_MAX], length: 0 };
    report.double(1, load.cpu_utilization);
    let shares = named.encoded();
    report.write(&shares);
    report.double(6, load.calls_per_s);
    report.double(7, load.errors_per_s);
    map_entry(8, RIF, f64::from(load.in_flight), |part| report.write(part));
    report.double(9, load.application_utilization);
    let mut text = [0_u8; ENCODED_BYTES_MAX];
    let length = STANDARD_NO_PAD.encode_slice(&report.bytes[..report.length], &mut text).unwrap_or(0);
    // Base64 is always a valid header value; an empty one would read as an empty report.
    HeaderValue::from_bytes(&text[..length]).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The same as a message.
pub(crate) fn report(load: &Momentary, named: &Named) -> OrcaLoadReport {
    OrcaLoadReport {
        cpu_utilization: load.cpu_utilization,
        utilization: named.pairs().into_iter().collect(),
        rps_fractional: load.calls_per_s,
        eps: load.errors_per_s,
        named_metrics: [(RIF.to_owned(), f64::from(load.in_flight))].into(),
        application_utilization: load.application_utilization,
        ..OrcaLoadReport::default()
    }
}

/// Serves `xds.service.orca.v3.OpenRcaService`: the whole load at once and then once per interval, 1 s unless the puller
/// wants another one from 100 ms up.
#[derive(Debug, Clone)]
pub struct OrcaService {
    pub(crate) counters: Arc<Counters>,
    pub(crate) named: Arc<Named>,
}

#[tonic::async_trait]
impl OpenRcaService for OrcaService {
    type StreamCoreMetricsStream = Pin<Box<dyn Stream<Item = Result<OrcaLoadReport, Status>> + Send>>;

    async fn stream_core_metrics(
        &self,
        request: Request<OrcaLoadReportRequest>,
    ) -> Result<Response<Self::StreamCoreMetricsStream>, Status> {
        let wish = request.into_inner().report_interval.and_then(|interval| {
            let seconds = u64::try_from(interval.seconds).ok()?;
            let nanos = u32::try_from(interval.nanos).ok()?;
            Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())))
        });
        let interval =
            wish.filter(|wish| !wish.is_zero()).unwrap_or(INTERVAL_DEFAULT).clamp(INTERVAL_MIN, INTERVAL_MAX);
        let timer = tokio::time::interval(interval);
        let reports = stream::unfold((timer, self.clone()), |(mut timer, service)| async move {
            timer.tick().await;
            service.counters.measure();
            let load = service.counters.momentary(0);
            let report = report(&load, &service.named);
            Some((Ok(report), (timer, service)))
        });
        Ok(Response::new(Box::pin(reports)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn load() -> Momentary {
        Momentary {
            in_flight: 7,
            calls_per_s: 12.5,
            errors_per_s: 0.25,
            application_utilization: 0.75,
            cpu_utilization: 0.0,
        }
    }

    fn decode(value: &HeaderValue) -> OrcaLoadReport {
        let bytes = STANDARD_NO_PAD.decode(value.as_bytes()).unwrap();
        OrcaLoadReport::decode(bytes.as_slice()).unwrap()
    }

    #[test]
    fn the_header_says_what_the_message_says() {
        let named = Named::default();
        assert!(named.set("db", 0.5));
        assert!(named.set("disk", 0.25));
        assert!(named.set("db", 0.625));
        assert_eq!(decode(&header_value(&load(), &named)), report(&load(), &named));
    }

    #[test]
    fn the_largest_report_still_fits() {
        let named = Named::default();
        for index in 0..UTILIZATION_NAMES_MAX {
            let name = format!("{index}{}", "n".repeat(UTILIZATION_NAME_BYTES_MAX - 1));
            assert!(named.set(&name, 0.1));
        }
        let load = Momentary { cpu_utilization: 0.9, ..load() };
        let value = header_value(&load, &named);
        assert_eq!(decode(&value), report(&load, &named));
        assert_eq!(crate::orca::rif(value.as_bytes()), Some(load.in_flight));
    }

    #[test]
    fn names_beyond_the_limit_are_refused_and_known_ones_still_change() {
        let named = Named::default();
        for index in 0..UTILIZATION_NAMES_MAX {
            assert!(named.set(&index.to_string(), 0.1));
        }
        assert!(!named.set("one too many", 0.1));
        assert!(!named.set(&"n".repeat(UTILIZATION_NAME_BYTES_MAX + 1), 0.1));
        assert!(named.set("0", 0.2));
    }

    #[test]
    fn no_calls_in_flight_is_said_and_not_left_out() {
        let idle = Momentary { in_flight: 0, ..load() };
        assert_eq!(decode(&header_value(&idle, &Named::default())).named_metrics.get(RIF), Some(&0.0));
    }
}
