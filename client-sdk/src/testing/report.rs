//! The script's `Reporter/Report`.

use std::sync::Arc;

use lookaside_proto::v1::{LoadReport, ReportResponse, reporter_server::Reporter};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::script::{Script, UNREAD_MAX};

#[derive(Debug)]
pub(crate) struct ReportService {
    pub(crate) script: Arc<Script>,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Reporter for ReportService {
    type ReportStream = ReceiverStream<Result<ReportResponse, Status>>;

    async fn report(&self, request: Request<Streaming<LoadReport>>) -> Result<Response<Self::ReportStream>, Status> {
        let mut reports = request.into_inner();
        let (sender, responses) = mpsc::channel(UNREAD_MAX);
        let stop = self.stop.child_token();
        let script = Arc::clone(&self.script);
        let id = script.open_report(sender, stop.clone());
        tokio::spawn(async move {
            loop {
                let report = tokio::select! {
                    () = stop.cancelled() => break,
                    report = reports.message() => report,
                };
                match report {
                    Ok(Some(report)) => script.hear_report(id, report),
                    Ok(None) | Err(_) => break,
                }
            }
            script.close(id);
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}
