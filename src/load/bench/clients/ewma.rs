//! tower's balancer as its own example sets it up: of two at random the one with the lower `PeakEwma`, which is the latency of
//! late, quick to rise and slow to sink, times the calls in flight (Finagle's).

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::Mutex;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma};
use tower::{BoxError, Service};

/// What an endpoint is taken to need until it has answered, and how fast a peak is forgotten: tower's own example.
const RTT_DEFAULT: Duration = Duration::from_millis(30);
const DECAY_NS: f64 = 10e9;

type Balanced = Balance<ServiceList<Vec<PeakEwma<Channel>>>, Request<Body>>;

/// Clones share it: they are one client.
#[derive(Debug, Clone)]
pub(crate) struct Ewma(Arc<Mutex<Balanced>>);

impl Ewma {
    pub(crate) fn new(channels: Vec<Channel>) -> Self {
        let measured = |channel| PeakEwma::new(channel, RTT_DEFAULT, DECAY_NS, CompleteOnResponse::default());
        let services = channels.into_iter().map(measured).collect();
        Self(Arc::new(Mutex::new(Balance::new(ServiceList::new::<Request<Body>>(services)))))
    }
}

impl Service<Request<Body>> for Ewma {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let mut balance = shared.lock().await;
            poll_fn(|context| balance.poll_ready(context)).await?;
            let answer = balance.call(request);
            // Others choose while this one waits.
            drop(balance);
            answer.await
        })
    }
}
