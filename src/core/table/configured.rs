//! A configuration takes effect: all of it or, where the table has no room for it, nothing. What it no longer names is
//! its word as well. A service that goes loses the endpoints that the file listed as if the file listed none, the last
//! ones after 30 s; those that registered themselves stay, and are balanced by the defaults.

use std::{collections::BTreeSet, sync::Arc};

use super::{Refusal, Table, endpoint::FAREWELL, service::Service};
use crate::{
    config::{Configuration, ServiceConfig},
    limits::{ENDPOINTS_PER_SERVICE_MAX, SERVICES_MAX},
    model::{Address, EndpointSpec, ServiceName, SourceId, Timestamp},
    snapshot::{Mode, SourceSnapshot},
};

impl Table {
    /// All or nothing.
    pub(super) fn configured(
        &mut self,
        source: &SourceId,
        configuration: Configuration,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.has_room_for(&configuration, source)?;
        let Configuration { defaults, services } = configuration;
        if *self.defaults != defaults {
            self.defaults = Arc::new(defaults);
        }
        let named: BTreeSet<_> = services.iter().map(|service| service.name.clone()).collect();
        for service in self.services.values_mut().filter(|service| !named.contains(&service.name)) {
            service.configured = false;
            service.configure(&self.defaults);
            service.left_by(source, now);
        }
        for configured in services {
            let service = self.make(&configured.name, now)?;
            service.configured = true;
            service.configure(&configured.config);
            match configured.endpoints {
                Some(endpoints) => service.listed(source, endpoints, now)?,
                None => service.left_by(source, now),
            }
        }
        self.sources.insert(
            source.clone(),
            SourceSnapshot { stale: None, answered_at: Some(now), ..SourceSnapshot::default() },
        );
        self.changed = true;
        Ok(())
    }

    /// Looked at before anything is changed.
    fn has_room_for(&self, configuration: &Configuration, source: &SourceId) -> Result<(), Refusal> {
        let new = configuration.services.iter().filter(|service| !self.services.contains_key(&service.name));
        if self.services.len() + new.count() > SERVICES_MAX {
            return Err(Refusal::TooManyServices { max: SERVICES_MAX });
        }
        for service in &configuration.services {
            let Some(endpoints) = &service.endpoints else { continue };
            let named = Service::named_once(&service.name, endpoints)?;
            match self.services.get(&service.name) {
                Some(known) => known.has_room_for(&named, source)?,
                None => Service::room(&service.name, named.len())?,
            }
        }
        Ok(())
    }
}

impl Service {
    /// Takes new settings, where they are new.
    pub(super) fn configure(&mut self, config: &Arc<ServiceConfig>) {
        if self.config != *config {
            self.config = Arc::clone(config);
            self.urgent = true;
        }
    }

    /// A source that can list speaks for this service no longer: nobody serves it, by its word.
    fn left_by(&mut self, source: &SourceId, now: Timestamp) {
        if self.is_followed_by(source) {
            self.dropped(source, now);
        }
    }

    /// The addresses of a listing, where none is there twice.
    pub(super) fn named_once<'a>(
        service: &ServiceName,
        specs: impl IntoIterator<Item = &'a EndpointSpec>,
    ) -> Result<BTreeSet<Address>, Refusal> {
        let mut named = BTreeSet::new();
        for EndpointSpec { address, .. } in specs {
            if !named.insert(address.clone()) {
                return Err(Refusal::ListedTwice { service: service.clone(), address: address.clone() });
            }
        }
        Ok(named)
    }

    /// Whether these fit in beside those that others know of. What this source alone named before makes room.
    pub(super) fn has_room_for(&self, named: &BTreeSet<Address>, source: &SourceId) -> Result<(), Refusal> {
        let others = self.endpoints.values().filter(|endpoint| !endpoint.is_named_by_nobody_but(source));
        let others = others.filter(|endpoint| !named.contains(&endpoint.spec.address)).count();
        Self::room(&self.name, named.len() + others)
    }

    pub(super) fn room(service: &ServiceName, endpoints: usize) -> Result<(), Refusal> {
        if endpoints <= ENDPOINTS_PER_SERVICE_MAX {
            return Ok(());
        }
        Err(Refusal::TooManyEndpoints { service: service.clone(), endpoints, max: ENDPOINTS_PER_SERVICE_MAX })
    }

    /// Whether it is to be remembered though nobody names it: that its last endpoints are gone is told for a while.
    pub(super) fn says_farewell(&self, now: Timestamp) -> bool {
        let is_new = |at: Timestamp| now.since(at) < FAREWELL;
        self.disowned && self.snapshot.as_ref().is_some_and(|s| s.mode == Mode::Empty && is_new(s.changed_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ConfiguredService,
        event::Event,
        limits::ENDPOINTS_PER_SERVICE_MAX,
        model::{Address, EndpointSpec, ServiceName},
    };

    fn service(name: &str, endpoints: usize) -> ConfiguredService {
        let at = |port: usize| EndpointSpec::at(Address::parse(&format!("10.0.0.1:{}", port + 1)).unwrap());
        ConfiguredService {
            name: ServiceName::parse(name).unwrap(),
            config: Arc::default(),
            endpoints: Some((0..endpoints).map(at).collect()),
        }
    }

    #[test]
    fn a_configuration_that_does_not_fit_in_changes_nothing() {
        let mut table = Table::new(1, ServiceConfig::default(), Timestamp(0));
        let source = SourceId::parse("file").unwrap();
        let mut read = |services: Vec<ConfiguredService>, subset_size| {
            let defaults = ServiceConfig { subset_size, ..ServiceConfig::default() };
            let configuration = Configuration { defaults, services };
            let done = table.apply(Event::Configured { source: source.clone(), configuration }, Timestamp(0));
            let snapshot = table.publish(Timestamp(0));
            (
                done,
                snapshot.map(|s| s.services.keys().map(ToString::to_string).collect::<Vec<_>>()),
                table.defaults.subset_size,
            )
        };
        assert_eq!(read(vec![service("a", 1)], 7), (Ok(()), Some(vec!["a".to_owned()]), 7));
        let (refused, snapshot, subset_size) =
            read(vec![service("b", 1), service("c", ENDPOINTS_PER_SERVICE_MAX + 1)], 8);
        assert!(matches!(refused, Err(Refusal::TooManyEndpoints { .. })), "{refused:?}");
        assert_eq!((snapshot, subset_size), (None, 7));
        let mut twice = service("d", 1);
        twice.endpoints.iter_mut().for_each(|specs| specs.extend_from_within(..));
        assert!(matches!(read(vec![twice], 8), (Err(Refusal::ListedTwice { .. }), None, 7)));
    }

    #[test]
    fn what_a_source_replaces_makes_room() {
        let mut table = Table::new(1, ServiceConfig::default(), Timestamp(0));
        let name = ServiceName::parse("a").unwrap();
        let mut listed = |source: &str, host: u8, endpoints: usize| {
            let at = |port| EndpointSpec::at(Address::parse(&format!("10.0.0.{host}:{}", port + 1)).unwrap());
            let endpoints = (0..endpoints).map(at).collect();
            let (source, service) = (SourceId::parse(source).unwrap(), name.clone());
            let event = Event::EndpointsListed { source, service, endpoints, detail: String::new() };
            let done = table.apply(event, Timestamp(0));
            table.publish(Timestamp(0));
            done
        };
        let most = ENDPOINTS_PER_SERVICE_MAX * 6 / 10;
        assert_eq!(listed("file", 1, most), Ok(()));
        assert_eq!(listed("file", 2, most), Ok(()));
        let refused = listed("dns", 3, most);
        assert!(matches!(refused, Err(Refusal::TooManyEndpoints { .. })), "those of another one stay: {refused:?}");
    }
}
