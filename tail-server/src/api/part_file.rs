//! One head artefact over HTTP: entity tag, conditional requests, and byte ranges streamed from disk.
//!
//! `tower-http` streams the file and answers ranges; it knows no entity tags, so those are decided here
//! (RFC 9110, sections 13.1.2 and 13.1.5) before it sees the request.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tower_http::services::ServeFile;

use crate::head_artifacts::{ArtifactError, PartFile};

/// `GET` and `HEAD` of a file whose digest is its entity tag.
pub(super) async fn serve(
    file: &PartFile,
    method: Method,
    headers: &HeaderMap,
) -> Result<Response, ArtifactError> {
    let tag = entity_tag(&file.artifact.digest);
    if is_not_modified(headers, &tag) {
        return Ok(not_modified(tag));
    }
    // Only what was decided here goes on: dates, for one, do not matter to a file that is named by its digest.
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    let range = headers
        .get(header::RANGE)
        .filter(|_| is_range_wanted(headers, &tag));
    if let Some(range) = range {
        request.headers_mut().insert(header::RANGE, range.clone());
    }
    let response = ServeFile::new(&file.path).try_call(request).await?;

    let mut response = response.map(Body::new);
    let answer_headers = response.headers_mut();
    answer_headers.remove(header::LAST_MODIFIED);
    answer_headers.insert(header::ETAG, tag);
    // The same URL names other bytes once the tail serves another model, so a cache must ask each time.
    answer_headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A digest as a strong entity tag.
pub(super) fn entity_tag(digest: &str) -> HeaderValue {
    HeaderValue::try_from(format!("\"{digest}\""))
        .expect("a digest is `sha256:` and hexadecimal digits")
}

/// True where the client says that it has these bytes already.
pub(super) fn is_not_modified(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let lists = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|list| list.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|candidate| {
            // If-None-Match compares weakly: a `W/` before the tag does not matter.
            candidate == "*" || candidate.trim_start_matches("W/").as_bytes() == tag.as_bytes()
        })
}

pub(super) fn not_modified(tag: HeaderValue) -> Response {
    (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response()
}

/// A range that continues a download of other bytes is not wanted: the client then gets the whole file.
fn is_range_wanted(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    headers
        .get(header::IF_RANGE)
        .is_none_or(|condition| condition == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn any_tag_of_the_list_matches_weakly_too() {
        let tag = entity_tag("sha256:ab");
        for list in ["\"sha256:ab\"", "\"other\", W/\"sha256:ab\"", "*"] {
            assert!(
                is_not_modified(&headers(header::IF_NONE_MATCH, list), &tag),
                "{list}"
            );
        }
        for list in ["\"other\"", "sha256:ab", ""] {
            assert!(
                !is_not_modified(&headers(header::IF_NONE_MATCH, list), &tag),
                "{list}"
            );
        }
    }

    #[test]
    fn a_range_of_other_bytes_is_not_continued() {
        let tag = entity_tag("sha256:ab");
        assert!(is_range_wanted(&HeaderMap::new(), &tag));
        assert!(is_range_wanted(
            &headers(header::IF_RANGE, "\"sha256:ab\""),
            &tag
        ));
        assert!(!is_range_wanted(
            &headers(header::IF_RANGE, "\"sha256:cd\""),
            &tag
        ));
        assert!(!is_range_wanted(
            &headers(header::IF_RANGE, "W/\"sha256:ab\""),
            &tag
        ));
    }
}
