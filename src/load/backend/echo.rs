//! `lookaside.demo.v1.Echo`, in each of the four shapes of a call.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, stream};
use lookaside_proto::demo::{
    EchoRequest, EchoResponse, ExecutionsRequest, ExecutionsResponse, StreamRequest, echo_server::Echo,
};
use lookaside_sdk::Reporter;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tonic::{Request, Response, Status, Streaming};

use super::Config;
use super::capacity::{Capacity, Full};
use super::executions::Executions;

/// Largest message of a stream, bytes; a wish for more is INVALID_ARGUMENT, since clients would refuse it.
const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// How long a unary call takes that fails without having worked.
const FAILS_AFTER: Duration = Duration::from_millis(1);

/// Longest delay of an answer; longer wishes are shortened.
const ANSWER_DELAY_MAX: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct State {
    instance: String,
    capacity: Arc<Capacity>,
    fail_rate: f64,
    random: Mutex<StdRng>,
    executions: Executions,
    open_streams: AtomicU32,
    calls: AtomicU64,
    executed: AtomicU64,
    unavailable: AtomicBool,
}

#[derive(Debug, Clone)]
pub(crate) struct EchoService(Arc<State>);

// A stream counts as open until its handler or its response is gone.
struct OpenStream(Arc<State>);

impl OpenStream {
    fn new(state: &Arc<State>) -> Self {
        state.open_streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl EchoService {
    pub(crate) fn new(config: &Config, instance: String, reporter: &Reporter) -> Self {
        let mean = config.mean.mul_f64(config.slow_factor);
        let capacity = Capacity::new(mean, config.distribution, config.slots, config.queue, config.seed);
        let capacity = Arc::new(capacity);
        let slots = Arc::clone(&capacity);
        reporter.measure_application_utilization(move || slots.full_for());
        Self(Arc::new(State {
            instance,
            capacity,
            fail_rate: config.fail_rate,
            random: Mutex::new(StdRng::seed_from_u64(!config.seed)),
            executions: Executions::default(),
            open_streams: AtomicU32::new(0),
            calls: AtomicU64::new(0),
            executed: AtomicU64::new(0),
            unavailable: AtomicBool::new(false),
        }))
    }

    pub(crate) fn open_streams(&self) -> u32 {
        self.0.open_streams.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unavailable(&self, unavailable: bool) {
        self.0.unavailable.store(unavailable, Ordering::Relaxed);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn executions(&self, request_id: &str) -> u32 {
        self.0.executions.of(request_id)
    }
}

impl State {
    fn fails(&self) -> Result<(), Status> {
        if self.unavailable.load(Ordering::Relaxed) {
            return Err(Status::unavailable(format!("{} is unavailable as it was told to be", self.instance)));
        }
        let fails = self.fail_rate > 0.0 && {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            random.random_bool(self.fail_rate.clamp(0.0, 1.0))
        };
        if fails { Err(Status::internal(format!("{} fails as it was told to", self.instance))) } else { Ok(()) }
    }

    // A real one finds out first, that its database is gone say.
    async fn fails_fast(&self) -> Result<(), Status> {
        let fails = self.fails();
        if fails.is_err() {
            tokio::time::sleep(FAILS_AFTER).await;
        }
        fails
    }

    fn answer(&self, payload: Vec<u8>, index: u64) -> EchoResponse {
        EchoResponse { payload, instance: self.instance.clone(), index }
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for EchoService {
    type ServerStreamStream = Responses;
    type BothStreamStream = Responses;

    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let request = request.into_inner();
        let state = &self.0;
        state.calls.fetch_add(1, Ordering::Relaxed);
        state.fails_fast().await?;
        let begun = || {
            state.executed.fetch_add(1, Ordering::Relaxed);
            state.executions.count(&request.request_id);
        };
        let worked = state.capacity.work(begun).await;
        worked.map_err(|Full| Status::resource_exhausted(format!("the queue of {} is full", state.instance)))?;
        if request.answer_delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(request.answer_delay_ms).min(ANSWER_DELAY_MAX)).await;
        }
        Ok(Response::new(state.answer(request.payload, 0)))
    }

    async fn server_stream(&self, request: Request<StreamRequest>) -> Result<Response<Responses>, Status> {
        let StreamRequest { count, size_bytes, interval_ms } = request.into_inner();
        self.0.fails()?;
        if size_bytes > MESSAGE_BYTES_MAX {
            return Err(Status::invalid_argument(format!("size_bytes {size_bytes} is above {MESSAGE_BYTES_MAX}")));
        }
        let open = OpenStream::new(&self.0);
        let interval = Duration::from_millis(interval_ms);
        let responses = stream::unfold((0, open), move |(index, open)| async move {
            if index >= count {
                return None;
            }
            if index > 0 && !interval.is_zero() {
                tokio::time::sleep(interval).await;
            }
            let response = open.0.answer(vec![0; size_bytes as usize], index);
            Some((Ok(response), (index + 1, open)))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn client_stream(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<EchoResponse>, Status> {
        self.0.fails()?;
        let open = OpenStream::new(&self.0);
        let mut requests = request.into_inner();
        let (mut count, mut payload) = (0, Vec::new());
        while let Some(request) = requests.message().await? {
            open.0.executions.count(&request.request_id);
            payload = request.payload;
            count += 1;
        }
        Ok(Response::new(open.0.answer(payload, count)))
    }

    async fn both_stream(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<Responses>, Status> {
        self.0.fails()?;
        let open = OpenStream::new(&self.0);
        let responses = stream::unfold((request.into_inner(), 0, open), |(mut requests, index, open)| async move {
            let answer = match requests.message().await {
                Ok(Some(request)) => {
                    open.0.executions.count(&request.request_id);
                    Ok(open.0.answer(request.payload, index))
                }
                Ok(None) => return None,
                Err(status) => Err(status),
            };
            Some((answer, (requests, index + 1, open)))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn executions(&self, request: Request<ExecutionsRequest>) -> Result<Response<ExecutionsResponse>, Status> {
        let asked = request.into_inner().request_ids;
        let executions = if asked.is_empty() {
            self.0.executions.all().into_iter().collect()
        } else {
            asked.into_iter().map(|id| (self.0.executions.of(&id), id)).map(|(count, id)| (id, count)).collect()
        };
        Ok(Response::new(ExecutionsResponse {
            executions,
            open_streams: self.open_streams(),
            calls: self.calls(),
            executed: self.0.executed.load(Ordering::Relaxed),
        }))
    }
}
