//! The channel as applications see it.

use std::{future::Future, pin::Pin, sync::Arc, task::{Context, Poll}, time::Duration};

use crate::{Error, Snapshot, target};

/// A balanced drop-in for a tonic `Channel`: hand it to any tonic 0.14 generated client. Clones share everything.
#[derive(Debug, Clone)]
pub struct Channel {
    inner: Arc<()>,
}

/// Collects what a channel needs to know.
#[derive(Debug, Clone)]
pub struct Builder {
    service: String,
}

#[allow(missing_docs)]
impl Builder {
    pub fn balancers<I, S>(self, _b: I) -> Self where I: IntoIterator<Item = S>, S: Into<String> { self }
    pub fn client_id(self, _id: impl Into<String>) -> Self { self }
    pub fn locality(self, _l: impl Into<String>) -> Self { self }
    pub fn label(self, _k: impl Into<String>, _v: impl Into<String>) -> Self { self }
    pub fn fallback<I, S>(self, _b: I) -> Self where I: IntoIterator<Item = S>, S: Into<String> { self }
    pub fn default_deadline(self, _d: Duration) -> Self { self }
    pub fn connect_timeout(self, _d: Duration) -> Self { self }
    pub fn first_list_timeout(self, _d: Duration) -> Self { self }
    pub fn stream_idle_limit(self, _d: Duration) -> Self { self }
    pub fn stream_life_limit(self, _d: Duration) -> Self { self }
    pub async fn connect(self) -> Result<Channel, Error> { self.lazy() }
    pub fn lazy(self) -> Result<Channel, Error> { let _ = target::address(&self.service); Ok(Channel { inner: Arc::new(()) }) }
}

#[allow(missing_docs)]
impl Channel {
    pub fn builder(service: impl Into<String>) -> Builder { Builder { service: service.into() } }
    pub async fn connect(target: &str) -> Result<Channel, Error> { let _ = target::parse(target)?; Ok(Channel { inner: Arc::new(()) }) }
    pub fn from_env(service: &str) -> Result<Channel, Error> { Self::builder(service).lazy() }
    pub fn snapshot(&self) -> Snapshot { let _ = &self.inner; unreachable!() }
    pub async fn changed(&self) { std::future::pending().await }
}

impl tower::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<tonic::body::Body>;
    type Error = tonic::Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> { Poll::Ready(Ok(())) }
    fn call(&mut self, _request: http::Request<tonic::body::Body>) -> Self::Future { Box::pin(async { Err(tonic::Status::unavailable("")) }) }
}
