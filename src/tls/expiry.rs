//! From when until when a certificate holds, and for whom: for metrics, `status` and warnings. Nothing is trusted by it.

use std::{net::IpAddr, time::SystemTime};

use rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::Error;

/// From when until when a chain of certificates holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validity {
    /// When the first certificate begins to hold.
    pub not_before: SystemTime,
    /// When the first one of the chain ceases to.
    pub not_after: SystemTime,
    /// Whom the first certificate is for: DNS names and IP addresses.
    pub names: Vec<String>,
}

impl Validity {
    /// Of a chain, the peer's own certificate first.
    pub(crate) fn of(place: &str, chain: &[CertificateDer<'static>]) -> Result<Self, Error> {
        let mut validity: Option<Self> = None;
        for der in chain {
            let malformed = |error| Error::Malformed { place: place.to_owned(), reason: format!("not X.509: {error}") };
            let certificate = Certificate::from_der(der).map_err(malformed)?;
            let holds = certificate.tbs_certificate.validity;
            let not_after = holds.not_after.to_system_time();
            match &mut validity {
                Some(first) => first.not_after = first.not_after.min(not_after),
                None => {
                    let not_before = holds.not_before.to_system_time();
                    validity = Some(Self { not_before, not_after, names: names(&certificate) });
                }
            }
        }
        validity.ok_or_else(|| Error::Malformed { place: place.to_owned(), reason: "an empty chain".to_owned() })
    }

    /// Seconds until it ceases to hold, below 0 when it has.
    pub fn seconds_left(&self, now: SystemTime) -> f64 {
        match self.not_after.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        }
    }

    /// How much of its life is left, 0 to 1.
    pub fn share_left(&self, now: SystemTime) -> f64 {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default().as_secs_f64();
        if life > 0.0 { (self.seconds_left(now) / life).clamp(0.0, 1.0) } else { 0.0 }
    }
}

fn names(certificate: &Certificate) -> Vec<String> {
    let Ok(Some((_, SubjectAltName(names)))) = certificate.tbs_certificate.get::<SubjectAltName>() else {
        return Vec::new();
    };
    let words = names.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
        GeneralName::IpAddress(octets) => {
            let four = <[u8; 4]>::try_from(octets.as_bytes()).map(IpAddr::from);
            let six = || <[u8; 16]>::try_from(octets.as_bytes()).map(IpAddr::from);
            four.or_else(|_| six()).ok().map(|address| address.to_string())
        }
        // Names of people and directories: no endpoint is called by one.
        _ => None,
    });
    words.collect()
}
