//! The script's `Balancer/Pick`.

use std::sync::Arc;

use lookaside_proto::v1::{PickRequest, PickResponse, balancer_server::Balancer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::script::{Script, UNREAD_MAX};

#[derive(Debug)]
pub(crate) struct PickService {
    pub(crate) script: Arc<Script>,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Balancer for PickService {
    type PickStream = ReceiverStream<Result<PickResponse, Status>>;

    async fn pick(&self, request: Request<Streaming<PickRequest>>) -> Result<Response<Self::PickStream>, Status> {
        let mut requests = request.into_inner();
        let (sender, responses) = mpsc::channel(UNREAD_MAX);
        let stop = self.stop.child_token();
        let script = Arc::clone(&self.script);
        let id = script.open_pick(sender, stop.clone());
        tokio::spawn(async move {
            loop {
                let said = tokio::select! {
                    () = stop.cancelled() => break,
                    said = requests.message() => said,
                };
                match said {
                    Ok(Some(PickRequest { kind: Some(kind) })) => script.hear_pick(id, kind),
                    Ok(Some(PickRequest { kind: None })) => {}
                    Ok(None) | Err(_) => break,
                }
            }
            script.close(id);
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}
