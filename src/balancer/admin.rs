//! What operators ask and order: `lookaside.v1.Admin`. Reads snapshots and says them in the words of the contract;
//! orders go to the driver. Decides nothing; the explanations are the core's.

use std::sync::Arc;

use lookaside_core::{model::ServiceName, snapshot::Snapshot};
use lookaside_proto::v1::{self, admin_server};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, service::interceptor::InterceptedService};

use crate::{
    accept::Connection,
    config::{Listen, Live},
    convert::{self, refused},
    driver::Handle,
    frontend::clients::Clients,
    limits::ADMIN_REQUEST_BYTES_MAX,
    tls::Certificates,
};

mod access;
mod decisions;
mod explain;
mod orders;
mod views;

pub(crate) use access::Token;

/// The service.
#[derive(Clone)]
pub(crate) struct Service(Arc<Parts>);

/// What it works with.
pub(crate) struct Parts {
    /// The state of affairs, and who carries orders out.
    pub(crate) driver: Handle,
    /// Who has which list.
    pub(crate) clients: Arc<Clients>,
    /// Identity of this replica.
    pub(crate) node: String,
    /// The configuration in force.
    pub(crate) live: Live,
    /// Where it listens.
    pub(crate) addresses: Listen,
    /// What the listeners show.
    pub(crate) certificates: Certificates,
    /// What operators on other machines show; `None` lets them order nothing.
    pub(crate) token: Option<Token>,
    /// Report streams open.
    pub(crate) report_streams: Box<dyn Fn() -> usize + Send + Sync>,
    /// Cancelled when the balancer is about to stop.
    pub(crate) draining: CancellationToken,
}

type Guard = fn(Request<()>) -> Result<Request<()>, Status>;

impl Service {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// To be mounted on the admin listener.
    pub(crate) fn into_server(self) -> InterceptedService<admin_server::AdminServer<Self>, Guard> {
        let server = admin_server::AdminServer::new(self).max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
        InterceptedService::new(server, refuse_browsers)
    }
}

/// A page from elsewhere must not order anything through the browser of an operator.
#[allow(clippy::result_large_err, reason = "the interceptor's signature")]
fn refuse_browsers(request: Request<()>) -> Result<Request<()>, Status> {
    match request.metadata().get("origin") {
        Some(_) => {
            Err(refused(Code::PermissionDenied, "BROWSER_ORIGIN", "requests from web pages are not answered", &[]))
        }
        None => Ok(request),
    }
}

impl Parts {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.driver.snapshots().borrow())
    }

    /// The service of that name, which must be known; `None` for no name.
    fn chosen(snapshot: &Snapshot, name: &str) -> Result<Option<ServiceName>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let service = convert::service(name)?;
        if snapshot.services.contains_key(&service) {
            Ok(Some(service))
        } else {
            Err(refused(
                Code::NotFound,
                "SERVICE_UNKNOWN",
                format!("nobody knows service {service}"),
                &[("service", name)],
            ))
        }
    }
}

#[tonic::async_trait]
impl admin_server::Admin for Service {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::Status>, Status> {
        Ok(Response::new(views::status(&self.0)))
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        let snapshot = self.0.snapshot();
        let chosen = Parts::chosen(&snapshot, &request.get_ref().service)?;
        let services = views::services(&self.0, &snapshot, chosen.as_ref());
        Ok(Response::new(v1::ListServicesResponse { services }))
    }

    async fn list_endpoints(
        &self,
        request: Request<v1::ListEndpointsRequest>,
    ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
        let snapshot = self.0.snapshot();
        let chosen = Parts::chosen(&snapshot, &request.get_ref().service)?;
        let endpoints = views::endpoints(&self.0, &snapshot, chosen.as_ref(), request.get_ref().excluded_only);
        Ok(Response::new(v1::ListEndpointsResponse { endpoints }))
    }

    async fn list_clients(
        &self,
        request: Request<v1::ListClientsRequest>,
    ) -> Result<Response<v1::ListClientsResponse>, Status> {
        let clients = match request.get_ref().service.as_str() {
            "" => views::clients(&self.0, None),
            name => views::clients(&self.0, Some(&convert::service(name)?)),
        };
        if clients.is_empty() {
            // A service that clients ask for in vain has clients all the same.
            Parts::chosen(&self.0.snapshot(), &request.get_ref().service)?;
        }
        Ok(Response::new(v1::ListClientsResponse { clients }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::Explanation>, Status> {
        explain::explain(&self.0, request.get_ref()).map(Response::new)
    }

    type WatchDecisionsStream = ReceiverStream<Result<v1::Decision, Status>>;

    async fn watch_decisions(
        &self,
        request: Request<v1::WatchDecisionsRequest>,
    ) -> Result<Response<Self::WatchDecisionsStream>, Status> {
        let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
        decisions::watch(&self.0, request.into_inner(), &connection).map(Response::new)
    }

    async fn set_override(
        &self,
        request: Request<v1::SetOverrideRequest>,
    ) -> Result<Response<v1::SetOverrideResponse>, Status> {
        let peer = request.remote_addr();
        access::may_order(self.0.token.as_ref(), peer, request.metadata())?;
        orders::set(&self.0, request.into_inner(), peer).await.map(Response::new)
    }
}

#[cfg(test)]
mod tests;
