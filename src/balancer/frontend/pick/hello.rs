//! How a stream begins: who asks and what it holds already; and how it ends, with words for those who do not keep to the
//! contract.

use std::collections::{BTreeMap, BTreeSet};

use lookaside_core::{
    limits::ENDPOINTS_PER_SERVICE_MAX,
    model::{Address, ClientId, Cohort, Locality, ServiceName, printable},
};
use lookaside_proto::v1::pick_request::Kind as Asked;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::requests::{self, Requests};
use crate::{
    accept::{Connection, later},
    convert::{invalid, refused},
    frontend::clients::Brought,
    limits::{HELD_ENDPOINTS_PER_CONNECTION_MAX, HELD_LISTS_MAX, HELLO_BYTES_MAX, HELLO_WAIT_MAX},
    telemetry,
};

/// How a stream ends.
pub(super) enum End {
    /// With words for the client.
    Said(Status),
    /// The same, and before them the advice to go elsewhere.
    Moved(Status),
    /// The client is no longer there.
    Gone,
    /// The client does not listen: it cannot even be told, since what it has not read stands in front.
    Unread,
}

/// What a client said of itself, checked.
pub(super) struct Hello {
    pub(super) id: ClientId,
    pub(super) sdk: String,
    pub(super) cohort: Cohort,
}

/// A list that a client brought with it.
#[derive(Default)]
pub(super) struct HeldList {
    pub(super) digest: u64,
    pub(super) endpoints: Brought,
}

pub(super) async fn hello(
    requests: &mut Requests,
    connection: &Connection,
) -> Result<(Hello, BTreeMap<ServiceName, HeldList>), End> {
    let said = |reason, words: &str| End::Said(refuse(Code::InvalidArgument, reason, words, &[]));
    let first = match timeout(HELLO_WAIT_MAX, requests.next(HELLO_BYTES_MAX)).await {
        Ok(Ok(Some(first))) => first,
        Ok(Ok(None)) => return Err(said("HELLO_MISSING", "the stream ended before its hello")),
        Ok(Err(error)) => return Err(unreadable(&error)),
        Err(_) => return Err(said("HELLO_MISSING", "there was no hello within five seconds")),
    };
    let Some(Asked::Hello(hello)) = first.kind else {
        return Err(said("HELLO_MISSING", "the first message of a pick stream is a hello"));
    };
    let bad = |reason, error| {
        count(reason);
        End::Said(invalid(reason, &error))
    };
    let id = ClientId::parse(&hello.client_id).map_err(|e| bad("CLIENT_ID_INVALID", e))?;
    let locality = Locality::parse(&hello.locality).map_err(|e| bad("LOCALITY_INVALID", e))?;
    if hello.held.len() > HELD_LISTS_MAX {
        return Err(said("HELD_LISTS_MAX", &format!("at most {HELD_LISTS_MAX} lists can be held")));
    }
    let mut held = BTreeMap::new();
    for list in hello.held {
        let service = ServiceName::parse(&list.service).map_err(|e| bad("SERVICE_INVALID", e))?;
        if list.endpoints.len() > ENDPOINTS_PER_SERVICE_MAX {
            let words = format!("at most {ENDPOINTS_PER_SERVICE_MAX} endpoints are in a list");
            return Err(said("HELD_ENDPOINTS_MAX", &words));
        }
        // Counted before there is memory for them.
        let holding = connection.hold(list.endpoints.len(), HELD_ENDPOINTS_PER_CONNECTION_MAX).ok_or_else(|| {
            count("HELD_ENDPOINTS_MAX");
            let words = format!(
                "on the streams of a connection at most {HELD_ENDPOINTS_PER_CONNECTION_MAX} endpoints can be held"
            );
            End::Said(later("HELD_ENDPOINTS_MAX", &words))
        })?;
        let addresses = list.endpoints.iter().map(|text| Address::parse(text)).collect::<Result<BTreeSet<_>, _>>();
        let addresses = addresses.map_err(|e| bad("ADDRESS_INVALID", e))?;
        let endpoints = Brought { addresses, _holding: Some(holding) };
        held.insert(service, HeldList { digest: list.digest, endpoints });
    }
    let cohort = Cohort::of(&id, locality);
    Ok((Hello { id, sdk: printable(&hello.sdk), cohort }, held))
}

pub(super) fn refuse(code: Code, reason: &'static str, words: &str, metadata: &[(&str, &str)]) -> Status {
    count(reason);
    refused(code, reason, words, metadata)
}

pub(super) fn count(reason: &'static str) {
    metrics::counter!(telemetry::PICK_REFUSED_TOTAL, "reason" => reason).increment(1);
}

/// A message that could not be read: the client's fault, unless its connection broke.
pub(super) fn unreadable(error: &requests::Error) -> End {
    use requests::Error;
    let words = error.to_string();
    match error {
        Error::Malformed(_) => End::Said(refuse(Code::InvalidArgument, "MESSAGE_MALFORMED", &words, &[])),
        Error::TooLarge { .. } => End::Said(refuse(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", &words, &[])),
        Error::Compressed => End::Said(refuse(Code::Unimplemented, "MESSAGE_COMPRESSED", &words, &[])),
        Error::Unfinished => {
            count("MESSAGES_UNFINISHED");
            End::Said(later("MESSAGES_UNFINISHED", &words))
        }
        Error::Broken => End::Gone,
    }
}
