//! What a client can do by itself over bare channels, one for each endpoint: turns, or the less busy of two at random by its
//! own calls in flight (Mitzenmacher's two choices; what gRPC calls least request).

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use lookaside_proto::demo::{EchoRequest, EchoResponse, echo_client::EchoClient};
use rand::RngExt as _;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

#[derive(Debug)]
struct Endpoint {
    client: EchoClient<Channel>,
    in_flight: AtomicU32,
}

#[derive(Debug)]
enum Choice {
    TwoAtRandom,
    Turns(AtomicUsize),
}

#[derive(Debug)]
pub(crate) struct Own {
    endpoints: Vec<Endpoint>,
    choice: Choice,
}

// In flight until dropped, be it answered or given up.
struct InFlight<'a>(&'a AtomicU32);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Own {
    pub(crate) fn p2c(channels: Vec<Channel>) -> Self {
        Self::new(channels, Choice::TwoAtRandom)
    }

    pub(crate) fn round_robin(channels: Vec<Channel>, first: usize) -> Self {
        Self::new(channels, Choice::Turns(AtomicUsize::new(first)))
    }

    fn new(channels: Vec<Channel>, choice: Choice) -> Self {
        let endpoint = |channel| Endpoint { client: EchoClient::new(channel), in_flight: AtomicU32::new(0) };
        Self { endpoints: channels.into_iter().map(endpoint).collect(), choice }
    }

    fn choose(&self) -> Option<&Endpoint> {
        let count = self.endpoints.len();
        if count == 0 {
            return None;
        }
        let at = match &self.choice {
            Choice::Turns(turn) => turn.fetch_add(1, Relaxed) % count,
            Choice::TwoAtRandom if count == 1 => 0,
            Choice::TwoAtRandom => {
                let mut random = rand::rng();
                let one = random.random_range(0..count);
                let other = (one + random.random_range(1..count)) % count;
                let busy = |at: usize| self.endpoints[at].in_flight.load(Relaxed);
                if busy(other) < busy(one) { other } else { one }
            }
        };
        self.endpoints.get(at)
    }

    pub(crate) async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let Some(endpoint) = self.choose() else { return Err(Status::unavailable("there is no endpoint")) };
        endpoint.in_flight.fetch_add(1, Relaxed);
        let _in_flight = InFlight(&endpoint.in_flight);
        endpoint.client.clone().unary(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(choice: Choice, count: usize) -> Own {
        let channel = |_| tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        Own::new((0..count).map(channel).collect(), choice)
    }

    #[tokio::test]
    async fn of_two_the_less_busy_one_is_taken() {
        let own = own(Choice::TwoAtRandom, 2);
        own.endpoints[0].in_flight.store(1, Relaxed);
        for _ in 0..100 {
            assert_eq!(own.choose().unwrap().in_flight.load(Relaxed), 0);
        }
    }

    #[tokio::test]
    async fn a_call_that_was_given_up_is_in_flight_no_more() {
        let own = own(Choice::Turns(AtomicUsize::new(0)), 1);
        drop(own.unary(Request::new(EchoRequest::default())).await);
        assert_eq!(own.endpoints[0].in_flight.load(Relaxed), 0);
        assert!(self::own(Choice::TwoAtRandom, 0).choose().is_none());
    }
}
