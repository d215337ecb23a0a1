//! The native front end: `lookaside.v1.Balancer/Pick`. A raw service beside the generated ones, since its answers are
//! bytes that were encoded once for a whole cohort. A stream lives in the task of its request, reads whatever comes at once
//! and sends the newest of what is due; nothing queues. Translates, and decides nothing.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use lookaside_proto::v1::balancer_server;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, server::NamedService, transport::server::TcpConnectInfo};
use tower::Service;

use super::{clients::Clients, cohorts::Cohorts};
use crate::{
    accept::{Connection, Task},
    driver::Handle,
};

mod admission;
mod allowance;
mod frames;
mod hello;
mod outcomes;
mod pending;
mod requests;
mod stream;

pub(crate) use admission::Admission;
use frames::frames;
use requests::Requests;

/// The one method, whose streams come by the thousand.
pub(crate) const METHOD: &str = "/lookaside.v1.Balancer/Pick";

/// What all streams share.
pub(crate) struct Shared {
    /// Where outcomes go.
    pub(crate) driver: Handle,
    /// Where lists come from.
    pub(crate) cohorts: Arc<Cohorts>,
    /// Where it is noted who has which.
    pub(crate) clients: Arc<Clients>,
    /// First lists in turn.
    pub(crate) admission: Admission,
    /// Cancelled when the balancer is about to stop.
    pub(crate) draining: CancellationToken,
}

/// The service.
#[derive(Clone)]
pub(crate) struct Pick(Arc<Shared>);

impl Pick {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl NamedService for Pick {
    const NAME: &'static str = balancer_server::SERVICE_NAME;
}

impl Service<Request<Body>> for Pick {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != METHOD {
            return ready(Ok(Status::unimplemented("the service has one method: Pick").into_http()));
        }
        let (head, body) = request.into_parts();
        let connection = head.extensions.get::<Connection>().cloned();
        let (Some(connection), Some(task)) = (connection, head.extensions.get::<Task>()) else {
            return ready(Ok(Status::internal("this request came on no connection of ours").into_http()));
        };
        let peer = head.extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let requests = Requests::new(body, connection.clone());
        let (out, frames) = frames();
        task.beside(stream::serve(Arc::clone(&self.0), peer, connection, requests, out));
        let mut response = Response::new(Body::new(frames));
        response.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
        ready(Ok(response))
    }
}

#[cfg(test)]
mod tests;
