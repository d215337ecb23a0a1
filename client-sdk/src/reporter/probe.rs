//! The answer to a picker that has heard nothing fresh of this backend.

use std::sync::Arc;

use lookaside_proto::v1::{ProbeRequest, ProbeResponse, backend_server::Backend};
use tonic::{Request, Response, Status};

use super::shared::Shared;

/// Serves `lookaside.v1.Backend`: calls in flight, whether it leaves, whether it is full.
#[derive(Debug, Clone)]
pub struct ProbeService {
    pub(crate) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Backend for ProbeService {
    async fn probe(&self, _request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let counters = &self.shared.counters;
        Ok(Response::new(ProbeResponse {
            in_flight: counters.totals().in_flight,
            draining: self.shared.is_draining(),
            overloaded: counters.application_utilization() > 1.0,
            incarnation: self.shared.registration.incarnation,
        }))
    }
}
