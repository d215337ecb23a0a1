//! For the tests of signals: a server that can be killed, a driver, and waiting for what a snapshot is to show.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body::Body;
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use lookaside_core::{
    config::ServiceConfig,
    model::{Address, ServiceName},
    snapshot::{EndpointSnapshot, Snapshot},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::transport::server::TcpConnectInfo;

use crate::{
    driver::Handle,
    testing::{driver_with, until},
};

/// A server; dropped, it is gone with all its connections, like a killed process.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Server {
    pub(super) async fn start<S, B>(service: S) -> Self
    where
        S: tower::Service<http::Request<Incoming>, Response = http::Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                let info = TcpConnectInfo { local_addr: Some(address), remote_addr: Some(peer) };
                let service = service.clone();
                let service = tower::service_fn(move |mut request: http::Request<Incoming>| {
                    request.extensions_mut().insert(info.clone());
                    tower::ServiceExt::oneshot(service.clone(), request)
                });
                let server = http2::Builder::new(TokioExecutor::new());
                connections.spawn(server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
            }
        }));
        Self { address, _task: task }
    }
}

pub(super) fn start_driver(defaults: ServiceConfig) -> (Handle, CancellationToken) {
    let stop = CancellationToken::new();
    (driver_with(defaults, &stop), stop)
}

pub(super) fn service() -> ServiceName {
    crate::testing::service("s")
}

/// Waits until an endpoint of the service is as it should be.
pub(super) async fn until_endpoint(
    driver: &Handle,
    address: SocketAddr,
    is_so: impl Fn(&EndpointSnapshot) -> bool,
) -> EndpointSnapshot {
    let address = Address::parse(&address.to_string()).unwrap();
    let find = |snapshot: &Snapshot| snapshot.services.get(&service()).and_then(|s| s.endpoint(&address)).cloned();
    let mut found = None;
    until(driver, |snapshot| {
        found = find(snapshot).filter(|endpoint| is_so(endpoint));
        found.is_some()
    })
    .await;
    found.unwrap()
}
