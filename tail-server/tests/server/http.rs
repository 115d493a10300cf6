//! Plain HTTP: what is served, tags, ranges, and what is not served.

use headway_model::manifest::{Artifact, Manifest, sha256_digest};
use reqwest::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use tail_server::Timeouts;

use crate::rig::{Server, http};

fn request(server: &Server, path: &str) -> RequestBuilder {
    http().get(server.url(path))
}

fn header(response: &Response, name: reqwest::header::HeaderName) -> &str {
    response.headers()[name].to_str().unwrap()
}

async fn error_message(response: Response) -> String {
    let body: serde_json::Value = response.json().await.unwrap();
    body["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_manifest_vouches_for_itself() {
    let server = Server::start(&["--split-min", "1"]).await;
    let manifest: Manifest = server.get("/v1/model").await.json().await.unwrap();
    assert_eq!(manifest, server.manifest);
    assert_eq!(manifest.identity.digest(), manifest.model_digest);
    assert_eq!((manifest.split.min, manifest.split.max), (1, 2));
}

#[tokio::test]
async fn the_tokenizer_has_its_digest_as_tag() {
    let server = Server::start(&[]).await;
    let response = server.get("/v1/tokenizer").await;
    let tag = header(&response, ETAG).to_owned();
    let body = response.bytes().await.unwrap();
    assert_eq!(
        sha256_digest(&body),
        server.manifest.identity.tokenizer.digest
    );
    assert_eq!(
        tag,
        format!("\"{}\"", server.manifest.identity.tokenizer.digest)
    );
    let again = request(&server, "/v1/tokenizer")
        .header(IF_NONE_MATCH, tag)
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn head_parts_are_listed_and_fetched_by_digest() {
    let server = Server::start(&["--head-quantizations", "none,q8_0"]).await;
    for quantization in ["none", "q8_0"] {
        let list = server
            .get(&format!("/v1/head/{quantization}?layers=0-2"))
            .await;
        let artifacts: Vec<Artifact> = list.json().await.unwrap();
        let names: Vec<&str> = artifacts
            .iter()
            .map(|artifact| artifact.name.as_str())
            .collect();
        assert_eq!(names, ["embedding", "layer-0", "layer-1"]);
        for artifact in &artifacts {
            let response = server
                .get(&format!("/v1/head/{quantization}/{}", artifact.name))
                .await;
            assert_eq!(
                header(&response, CONTENT_LENGTH),
                artifact.bytes.to_string()
            );
            assert_eq!(header(&response, ACCEPT_RANGES), "bytes");
            assert_eq!(header(&response, ETAG), format!("\"{}\"", artifact.digest));
            assert_eq!(
                sha256_digest(&response.bytes().await.unwrap()),
                artifact.digest
            );
        }
    }
}

#[tokio::test]
async fn unquantised_parts_are_those_of_the_identity() {
    let server = Server::start(&[]).await;
    let artifacts: Vec<Artifact> = server
        .get("/v1/head/none?layers=0-2")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(artifacts, server.manifest.identity.parts[..3]);
}

#[tokio::test]
async fn a_download_goes_on_where_it_stopped() {
    let server = Server::start(&[]).await;
    let path = "/v1/head/none/layer-0";
    let whole = server.get(path).await.bytes().await.unwrap();
    let tag = format!("\"{}\"", sha256_digest(&whole));

    let first = request(&server, path)
        .header(RANGE, "bytes=0-999")
        .send()
        .await
        .unwrap();
    assert_eq!(first.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(
        header(&first, CONTENT_RANGE),
        format!("bytes 0-999/{}", whole.len())
    );
    assert_eq!(header(&first, ETAG), tag);
    let mut joined = first.bytes().await.unwrap().to_vec();

    let rest = request(&server, path)
        .header(RANGE, "bytes=1000-")
        .header(IF_RANGE, &tag)
        .send()
        .await
        .unwrap();
    assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
    joined.extend_from_slice(&rest.bytes().await.unwrap());
    assert_eq!(joined, whole);

    let last = request(&server, path)
        .header(RANGE, "bytes=-10")
        .send()
        .await
        .unwrap();
    assert_eq!(last.bytes().await.unwrap(), whole[whole.len() - 10..]);
}

#[tokio::test]
async fn a_download_of_other_bytes_starts_again() {
    let server = Server::start(&[]).await;
    let response = request(&server, "/v1/head/none/layer-0")
        .header(RANGE, "bytes=1000-")
        .header(IF_RANGE, "\"sha256:other\"")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_range_beyond_the_file_cannot_be_satisfied() {
    let server = Server::start(&[]).await;
    let beyond = request(&server, "/v1/head/none/layer-0")
        .header(RANGE, "bytes=99999999-")
        .send()
        .await
        .unwrap();
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert!(header(&beyond, CONTENT_RANGE).starts_with("bytes */"));
}

#[tokio::test]
async fn known_bytes_are_not_sent_again() {
    let server = Server::start(&[]).await;
    let path = "/v1/head/none/layer-1";
    let tag = header(&server.get(path).await, ETAG).to_owned();
    let again = request(&server, path)
        .header(IF_NONE_MATCH, tag)
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert!(again.bytes().await.unwrap().is_empty());
}

#[tokio::test]
async fn head_tells_the_size_without_the_bytes() {
    let server = Server::start(&[]).await;
    let url = server.url("/v1/head/none/embedding");
    let response = http().request(Method::HEAD, url).send().await.unwrap();
    assert_eq!(
        header(&response, CONTENT_LENGTH),
        server.manifest.identity.parts[0].bytes.to_string()
    );
}

#[tokio::test]
async fn tail_layers_are_not_for_download() {
    let server = Server::start(&["--split-max", "1"]).await;
    for path in [
        "/v1/head/none/layer-1",
        "/v1/head/none/lm_head",
        "/v1/head/none?layers=0-2",
        "/v1/head/none?layers=1-3",
    ] {
        let response = server.get(path).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        let message = error_message(response).await;
        assert!(message.contains("layer-0"), "{message}");
    }
    assert_eq!(
        server.get("/v1/head/none/layer-0").await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_device_that_may_answer_alone_gets_everything_and_sessions_keep_their_bounds() {
    let server = Server::start(&["--on-device-answers", "--split-max", "1"]).await;
    let manifest: Manifest = server.get("/v1/model").await.json().await.unwrap();
    assert!(manifest.on_device_answers && manifest.split.max == 1);
    for path in ["/v1/head/none/lm_head", "/v1/head/none?layers=0-3"] {
        assert_eq!(server.get(path).await.status(), StatusCode::OK, "{path}");
    }
    let mut client = server.connect().await;
    client.send(server.open(2)).await;
    let refusal = client.refusal().await;
    assert!(refusal.message.contains("0 to 1"), "{}", refusal.message);
}

#[tokio::test]
async fn the_largest_split_layer_of_all_layers_says_the_same() {
    let server = Server::start(&["--split-max", "3", "--split-default", "2"]).await;
    let manifest: Manifest = server.get("/v1/model").await.json().await.unwrap();
    assert!(manifest.on_device_answers && manifest.token_upload);
    assert_eq!((manifest.split.max, manifest.split.default), (3, 2));
}

#[tokio::test]
async fn names_that_mean_nothing_are_refused_with_those_that_do() {
    let server = Server::start(&["--head-quantizations", "none"]).await;
    let response = server.get("/v1/head/q4_0/layer-0").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(error_message(response).await.contains("offered are none"));
    let response = server.get("/v1/head/none?layers=2-0").await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let response = server.get("/v1/head/none/..%2f..%2fsecret").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_damaged_cache_file_is_built_again() {
    let cache = tempfile::tempdir().unwrap();
    let first = Server::start_in(cache.path(), &[], Timeouts::default()).await;
    let whole = first
        .get("/v1/head/none/layer-0")
        .await
        .bytes()
        .await
        .unwrap();
    let hex = first.manifest.model_digest.trim_start_matches("sha256:");
    let file = first
        .cache_dir
        .join("head")
        .join(hex)
        .join("none")
        .join("layer-0.gguf");
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    std::fs::write(&file, b"damaged").unwrap();

    let second = Server::start_in(cache.path(), &[], Timeouts::default()).await;
    assert_eq!(
        second
            .get("/v1/head/none/layer-0")
            .await
            .bytes()
            .await
            .unwrap(),
        whole
    );
}

#[tokio::test]
async fn a_plain_request_for_a_session_is_refused() {
    let server = Server::start(&[]).await;
    assert!(server.get("/v1/session").await.status().is_client_error());
}
