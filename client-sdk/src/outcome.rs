//! How calls ended, by whom the end blames. The classes themselves belong to the picker, which acts on them; this room maps
//! gRPC's status codes to them. It refuses to guess: every code has its class here, in full.

use tonic::Code;

pub use crate::picker::Class;

/// The class of a call that ended with this status code.
///
/// `ABORTED` is the word of a transaction that lost a race: the caller's to repeat, no fault of the endpoint.
pub fn class_of(code: Code) -> Class {
    match code {
        Code::Ok => Class::Ok,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Aborted => Class::Caller,
        Code::Cancelled => Class::Cancelled,
        Code::ResourceExhausted => Class::Overload,
        Code::DeadlineExceeded => Class::Deadline,
        Code::Unavailable | Code::Internal | Code::Unknown | Code::DataLoss | Code::Unimplemented => Class::Endpoint,
    }
}

/// The class of an answer whose `grpc-status` header or trailer reads so; `None` when there is none, or it is not a number.
pub fn class_of_headers(headers: &http::HeaderMap) -> Option<Class> {
    code_of_headers(headers).map(class_of)
}

/// The code in a `grpc-status` header or trailer; `None` when there is none, or it is not a number.
pub(crate) fn code_of_headers(headers: &http::HeaderMap) -> Option<Code> {
    let value = headers.get("grpc-status")?;
    let number: i32 = value.to_str().ok()?.trim().parse().ok()?;
    Some(Code::from_i32(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_mistakes_never_blame_the_endpoint() {
        for code in [Code::InvalidArgument, Code::NotFound, Code::PermissionDenied, Code::OutOfRange, Code::Aborted] {
            assert_eq!(class_of(code), Class::Caller);
        }
    }

    #[test]
    fn a_status_is_read_from_headers_and_nonsense_is_none() {
        let mut headers = http::HeaderMap::new();
        assert_eq!(class_of_headers(&headers), None);
        headers.insert("grpc-status", http::HeaderValue::from_static("8"));
        assert_eq!(class_of_headers(&headers), Some(Class::Overload));
        headers.insert("grpc-status", http::HeaderValue::from_static("teapot"));
        assert_eq!(class_of_headers(&headers), None);
        headers.insert("grpc-status", http::HeaderValue::from_static("99"));
        assert_eq!(class_of_headers(&headers), Some(Class::Endpoint));
    }
}
