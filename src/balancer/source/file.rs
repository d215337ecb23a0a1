//! The configuration as a source: its services, and the endpoints it lists for them. The file is read once, at the
//! start, so this source tells everything in one go and never turns stale.

use lookaside_core::{event::Event, model::SourceId};
use tokio_util::sync::CancellationToken;

use crate::{config::Service, driver::Handle, source::Source};

/// The services of a configuration.
pub(crate) struct File {
    id: SourceId,
    services: Vec<Service>,
}

impl File {
    /// Those of a valid configuration, told under the name `id`.
    pub(crate) fn new(id: SourceId, services: Vec<Service>) -> Self {
        Self { id, services }
    }
}

impl Source for File {
    /// Ends when everything is told.
    async fn follow(self, driver: Handle, stop: CancellationToken) {
        for Service { name: service, config, endpoints } in self.services {
            if stop.is_cancelled() {
                return;
            }
            tell(&driver, Event::ServiceConfigured { service: service.clone(), config }).await;
            if let Some(endpoints) = endpoints {
                let (source, detail) = (self.id.clone(), String::new());
                tell(&driver, Event::EndpointsListed { source, service, endpoints, detail }).await;
            }
        }
    }
}

/// A refusal is the reader's to know: the balancer serves without what was refused.
async fn tell(driver: &Handle, event: Event) {
    if let Err(error) = driver.ask(event).await {
        tracing::error!(%error, "a part of the configuration is not taken");
    }
}
