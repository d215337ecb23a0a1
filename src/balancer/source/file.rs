//! The configuration as a source: its services, and the endpoints it lists for them. It is told whole, at the start and
//! whenever the file has changed to something valid; a file that is not taken changes nothing, and is told of in log,
//! metric and status until it is mended. It never turns stale: what was read last holds.

use std::sync::Arc;

use lookaside_core::{
    config::{Configuration, ConfiguredService},
    event::Event,
    model::SourceId,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, InForce, Origin, Refused},
    driver::{self, Handle, unix_ms},
    limits::REFUSED_REASONS_MAX,
    source::Source,
    telemetry, tls,
};

mod changes;

use changes::{Changes, Why};

/// The services of a configuration.
pub(crate) struct File {
    id: SourceId,
    in_force: watch::Sender<InForce>,
}

impl File {
    /// Those of the configuration in force, told under the name `id`.
    pub(crate) fn new(id: SourceId, in_force: watch::Sender<InForce>) -> Self {
        Self { id, in_force }
    }

    /// Tells what the balancer starts with, before anybody can ask.
    ///
    /// # Errors
    /// When they are not taken: of a service that its file does not name a balancer would say that it is gone.
    pub(crate) async fn begin(&self, driver: &Handle) -> Result<(), driver::Error> {
        metrics::gauge!(telemetry::CONFIG_RELOAD_FAILED).set(0.0);
        let (config, since) = {
            let in_force = self.in_force.borrow();
            (Arc::clone(&in_force.config), in_force.since_unix_ms)
        };
        note_applied(since);
        self.tell(driver, &config).await
    }

    async fn tell(&self, driver: &Handle, config: &Config) -> Result<(), driver::Error> {
        let services = config.services.iter().map(|service| ConfiguredService {
            name: service.name.clone(),
            config: Arc::new(service.config.clone()),
            endpoints: service.endpoints.clone(),
        });
        let configuration = Configuration { defaults: config.defaults.clone(), services: services.collect() };
        driver.ask(Event::Configured { source: self.id.clone(), configuration }).await
    }

    /// Takes what was read if it is good.
    async fn reload(&self, driver: &Handle, origin: &Origin, read: Result<Config, Vec<String>>) {
        let taken = match read {
            Ok(config) => match self.tell(driver, &config).await {
                Ok(()) => Ok(config),
                Err(error) => Err(vec![format!("{}: {error}", origin.path.display())]),
            },
            Err(reasons) => Err(reasons),
        };
        match taken {
            Ok(config) => {
                let since_unix_ms = unix_ms();
                tracing::info!(file = %origin.path.display(), services = config.services.len(), "configuration applied");
                self.in_force.send_replace(InForce { config: Arc::new(config), since_unix_ms, refused: None });
                note_applied(since_unix_ms);
                metrics::gauge!(telemetry::CONFIG_RELOAD_FAILED).set(0.0);
                metrics::counter!(telemetry::CONFIG_RELOADS_TOTAL, "result" => "applied").increment(1);
            }
            Err(mut reasons) => {
                let more = reasons.len().saturating_sub(REFUSED_REASONS_MAX);
                reasons.truncate(REFUSED_REASONS_MAX);
                for reason in &reasons {
                    tracing::error!(reason, "configuration refused, the last good one stays");
                }
                if more > 0 {
                    reasons.push(format!("and {more} more; lookaside validate -c {}", origin.path.display()));
                }
                let refused = Some(Refused { at_unix_ms: unix_ms(), reasons });
                self.in_force.send_modify(|in_force| in_force.refused = refused);
                metrics::gauge!(telemetry::CONFIG_RELOAD_FAILED).set(1.0);
                metrics::counter!(telemetry::CONFIG_RELOADS_TOTAL, "result" => "refused").increment(1);
            }
        }
    }
}

impl Source for File {
    /// Follows the file for as long as the balancer lives; ends at once where there is none.
    async fn follow(self, driver: Handle, stop: CancellationToken) {
        let Some(origin) = self.in_force.borrow().config.origin.clone() else { return };
        let mut changes = Changes::of(&origin.path);
        let mut seen = origin.digest;
        loop {
            let why = tokio::select! {
                () = stop.cancelled() => return,
                why = changes.next() => why,
            };
            let same = match why {
                Why::Perhaps => Some(seen),
                Why::Asked => None,
            };
            let again = origin.clone();
            // A file system may be slow, and a large file takes a while to be understood.
            let looked = tokio::task::spawn_blocking(move || look(&again, same)).await;
            if let Ok(Some((digest, read))) = looked {
                seen = digest;
                self.reload(&driver, &origin, read).await;
            }
        }
    }
}

/// Reads the file again, and opens the files that it names, as a start does. `None` when its digest is still this one.
fn look(origin: &Origin, same: Option<u64>) -> Option<(u64, Result<Config, Vec<String>>)> {
    let (digest, read) = origin.read_again(same)?;
    let usable = read.map_err(|error| error.lines()).and_then(|config| match tls::try_endpoints(&config) {
        Ok(()) => Ok(config),
        Err((what, error)) => Err(vec![format!("{}: {what}: {error}", origin.path.display())]),
    });
    Some((digest, usable))
}

fn note_applied(unix_ms: u64) {
    metrics::gauge!(telemetry::CONFIG_APPLIED_TIMESTAMP_SECONDS).set(unix_ms as f64 / 1000.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_whose_services_name_tls_files_of_no_use_is_refused() {
        let path = std::env::temp_dir().join(format!("lookaside-file-{}.yaml", std::process::id()));
        let read = |text: &str, origin: Option<&Origin>| {
            std::fs::write(&path, text).unwrap();
            match origin {
                None => Config::load(&path).unwrap().origin,
                Some(origin) => {
                    let (_, read) = look(origin, Some(origin.digest)).unwrap();
                    assert!(read.is_err_and(|reasons| reasons[0].contains("/nowhere/ca.pem")), "{text}");
                    None
                }
            }
        };
        let origin = read("services: [{ name: s }]", None);
        read("services: [{ name: s, tls: { ca: /nowhere/ca.pem } }]", origin.as_ref());
        read("defaults: { tls: { ca: /nowhere/ca.pem } }", origin.as_ref());
        std::fs::remove_file(&path).unwrap();
    }
}
