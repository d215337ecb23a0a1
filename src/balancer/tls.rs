//! The certificates that the listeners show: opened at the start, looked at for as long as the balancer runs, and told to
//! whoever wants to know how long they last. And what connects to endpoints that speak TLS. What the handshake is,
//! `lookaside-tls` knows.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lookaside_core::config::EndpointTls;
use lookaside_tls::{Acceptor, LOOK_PERIOD, Look, Tls, Validity};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, ListenerTls, Security},
    telemetry::{self, gauges::Numbers},
};

/// With less than this of its life left a certificate should have been replaced.
const SHARE_LEFT_MIN: f64 = 0.25;

/// The certificates of all listeners that have one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificates(Arc<Vec<Certificate>>);

#[derive(Debug)]
struct Certificate {
    listener: &'static str,
    acceptor: Acceptor,
}

/// A certificate as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CertificateView {
    /// client or admin.
    pub(crate) listener: &'static str,
    /// Whom it is for.
    pub(crate) names: Vec<String>,
    /// From when until when it holds, milliseconds since 1970.
    pub(crate) not_before_unix_ms: u64,
    /// As above.
    pub(crate) not_after_unix_ms: u64,
    /// Less than a quarter of its life is left, or nothing.
    pub(crate) is_ending: bool,
    /// Why newer files are not in use; empty when they are.
    pub(crate) refused: String,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// Which listener's files are of no use, and why.
    pub(crate) fn load(security: &Security) -> Result<Self, (&'static str, lookaside_tls::Error)> {
        let mut all = Vec::new();
        for (listener, tls) in [("client", &security.client), ("admin", &security.admin)] {
            if let Some(tls) = tls {
                let acceptor = open(listener, tls).map_err(|error| (listener, error))?;
                all.push(Certificate { listener, acceptor });
            }
        }
        Ok(Self(Arc::new(all)))
    }

    /// What takes the connections of a listener over TLS; `None` where that listener has none.
    pub(crate) fn of(&self, listener: &str) -> Option<Acceptor> {
        self.0.iter().find(|certificate| certificate.listener == listener).map(|found| found.acceptor.clone())
    }

    /// All of them, as they are now.
    pub(crate) fn views(&self) -> Vec<CertificateView> {
        let now = SystemTime::now();
        let view = |certificate: &Certificate| {
            let validity = certificate.acceptor.validity();
            CertificateView {
                listener: certificate.listener,
                not_before_unix_ms: unix_ms(validity.not_before),
                not_after_unix_ms: unix_ms(validity.not_after),
                is_ending: is_ending(&validity, now),
                names: validity.names,
                refused: certificate.acceptor.refused().unwrap_or_default(),
            }
        };
        self.0.iter().map(view).collect()
    }

    /// How long each of them lasts, for the page of metrics.
    pub(crate) fn numbers(&self) -> Numbers {
        let now = SystemTime::now();
        let number = |certificate: &Certificate| {
            let labels = vec![("listener", certificate.listener.to_owned())];
            ((telemetry::CERTIFICATE_EXPIRY_SECONDS, labels), certificate.acceptor.validity().seconds_left(now))
        };
        self.0.iter().map(number).collect()
    }

    /// Looks at the files once a second, and warns when a certificate comes to its end, until `stop` is cancelled.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut warned: Vec<Option<SystemTime>> = vec![None; self.0.len()];
        while !self.0.is_empty() {
            for (certificate, warned) in self.0.iter().zip(&mut warned) {
                certificate.look().await;
                certificate.warn(warned);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(LOOK_PERIOD) => {}
            }
        }
    }
}

impl Certificate {
    async fn look(&self) {
        let acceptor = self.acceptor.clone();
        // A disk that hangs is not to stop anybody else. An error means that the runtime ends.
        let Ok(look) = tokio::task::spawn_blocking(move || acceptor.look()).await else { return };
        let result = match look {
            Look::Same => return,
            Look::Taken => "taken",
            Look::Refused => "refused",
        };
        metrics::counter!(telemetry::CERTIFICATE_RELOADS_TOTAL, "listener" => self.listener, "result" => result)
            .increment(1);
    }

    /// Once for each certificate that comes to its end, and once more when it has.
    fn warn(&self, warned: &mut Option<SystemTime>) {
        let (now, validity) = (SystemTime::now(), self.acceptor.validity());
        let (listener, seconds_left) = (self.listener, validity.seconds_left(now));
        if !is_ending(&validity, now) || *warned == Some(validity.not_after) {
            return;
        }
        if seconds_left > 0.0 {
            if *warned != Some(validity.not_before) {
                let left = Duration::from_secs_f64(seconds_left.floor());
                tracing::warn!(
                    listener,
                    ?left,
                    "less than a quarter of the certificate's life is left: replace its files"
                );
            }
            // Told of this one's end to come, not of its end.
            *warned = Some(validity.not_before);
        } else {
            tracing::error!(
                listener,
                "the certificate has expired: whoever verifies it does not connect; replace its files"
            );
            *warned = Some(validity.not_after);
        }
    }
}

fn open(listener: &str, tls: &ListenerTls) -> Result<Acceptor, lookaside_tls::Error> {
    let mut builder = Acceptor::builder(&tls.cert, &tls.key).client_auth(tls.client_auth);
    if let Some(ca) = &tls.client_ca {
        builder = builder.client_ca_file(ca);
    }
    builder.build(format!("certificate of the {listener} listener"))
}

/// What connects to endpoints that speak TLS.
///
/// # Errors
/// When its files are of no use.
pub(crate) fn of_endpoints(tls: &EndpointTls) -> Result<Tls, lookaside_tls::Error> {
    let builder = Tls::builder().ca_file(&tls.ca);
    if tls.cert.is_empty() { builder.build() } else { builder.identity_files(&tls.cert, &tls.key).build() }
}

/// Opens the files for the endpoints of every service, which is work for a thread that may wait.
///
/// # Errors
/// Which service's files are of no use, and why: none of its checks would come to an end.
pub(crate) fn try_endpoints(config: &Config) -> Result<(), (String, lookaside_tls::Error)> {
    let services = config.services.iter().map(|service| (service.name.as_str(), &service.config.tls));
    let mut tried = BTreeSet::new();
    for (name, tls) in services.chain([("defaults", &config.defaults.tls)]) {
        if let Some(tls) = tls.as_ref().filter(|tls| tried.insert(*tls)) {
            of_endpoints(tls).map_err(|error| (format!("tls of {name}"), error))?;
        }
    }
    Ok(())
}

fn is_ending(validity: &Validity, now: SystemTime) -> bool {
    validity.share_left(now) < SHARE_LEFT_MIN
}

fn unix_ms(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
