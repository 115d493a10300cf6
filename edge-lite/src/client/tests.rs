use std::path::PathBuf;

use super::*;
use crate::test_tail::{TestTail, client_config};

/// A cache folder, and a configuration that uses it.
fn cache(split_layer: usize) -> (tempfile::TempDir, ClientConfig) {
    let folder = tempfile::tempdir().unwrap();
    let config = ClientConfig {
        split_layer: Some(split_layer),
        ..client_config(folder.path())
    };
    (folder, config)
}

async fn pull_from(tail: &TestTail, config: &ClientConfig) -> Result<Pulled, Error> {
    pull(&format!("ws://{}", tail.serve().await), config).await
}

fn paths(tail: &TestTail) -> Vec<String> {
    tail.requests
        .lock()
        .unwrap()
        .iter()
        .map(|(path, _)| path.clone())
        .collect()
}

#[tokio::test]
async fn only_the_parts_below_the_split_layer_are_fetched() {
    let (tail, (_cache, config)) = (TestTail::new(), cache(2));
    let pulled = pull_from(&tail, &config).await.unwrap();
    assert_eq!(
        paths(&tail),
        [
            "tokenizer",
            "head/none/embedding",
            "head/none/layer-0",
            "head/none/layer-1"
        ]
    );
    for (part, file) in pulled.parts.iter().zip(&pulled.files) {
        assert_eq!(
            std::fs::read(file).unwrap(),
            tail.files[&format!("head/none/{}", part.name)]
        );
    }
}

#[tokio::test]
async fn split_layer_0_needs_the_tokenizer_only() {
    let (tail, (_cache, config)) = (TestTail::new(), cache(0));
    assert!(pull_from(&tail, &config).await.unwrap().files.is_empty());
    assert_eq!(paths(&tail), ["tokenizer"]);
}

#[tokio::test]
async fn without_a_wish_the_manifests_recommendations_are_taken() {
    let (tail, (_cache, config)) = (TestTail::new(), cache(0));
    let pulled = pull_from(
        &tail,
        &ClientConfig {
            split_layer: None,
            ..config
        },
    )
    .await
    .unwrap();
    let expected = Choice {
        split_layer: 2,
        codec: Codec::F32,
        head_quantization: Quantization::None,
    };
    assert_eq!(pulled.choice, expected);
}

#[tokio::test]
async fn what_is_in_the_cache_is_not_fetched_again() {
    let (tail, (_cache, config)) = (TestTail::new(), cache(1));
    pull_from(&tail, &config).await.unwrap();
    let first = paths(&tail).len();
    pull_from(&tail, &config).await.unwrap();
    assert_eq!(paths(&tail).len(), first);
}

#[tokio::test]
async fn a_manifest_whose_digest_is_not_its_contents_is_refused_with_both() {
    let (mut tail, (_cache, config)) = (TestTail::new(), cache(1));
    let stated = tail.manifest.model_digest.clone();
    tail.manifest.identity.eos_token_ids.push(3);
    let error = pull_from(&tail, &config).await.err().unwrap();
    assert!(
        matches!(error, Error::Tail(TailError::ManifestDigest { .. })),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains(&stated) && text.contains(&tail.manifest.identity.digest()),
        "{text}"
    );
    assert!(
        paths(&tail).is_empty(),
        "nothing is fetched on the word of such a manifest"
    );
}

#[tokio::test]
async fn a_damaged_part_in_the_cache_is_fetched_again() {
    let (tail, (_cache, config)) = (TestTail::new(), cache(1));
    let damaged: PathBuf = pull_from(&tail, &config).await.unwrap().files[1].clone();
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    tail.requests.lock().unwrap().clear();
    pull_from(&tail, &config).await.unwrap();
    assert_eq!(paths(&tail), ["head/none/layer-0"]);
    assert_eq!(
        std::fs::read(&damaged).unwrap(),
        tail.files["head/none/layer-0"]
    );
}

#[tokio::test]
async fn a_download_that_broke_off_is_continued() {
    let (tail, (_cache, config)) = (TestTail::new(), cache(1));
    let file = pull_from(&tail, &config).await.unwrap().files[1].clone();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(file.with_extension("part"), &bytes[..100]).unwrap();
    std::fs::remove_file(&file).unwrap();
    tail.requests.lock().unwrap().clear();
    pull_from(&tail, &config).await.unwrap();
    let expected = (
        "head/none/layer-0".to_owned(),
        Some("bytes=100-".to_owned()),
    );
    assert_eq!(*tail.requests.lock().unwrap(), [expected]);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[tokio::test]
async fn a_damaged_part_file_is_fetched_from_its_start() {
    let (tail, (_cache, config)) = (TestTail::new(), cache(1));
    let file = pull_from(&tail, &config).await.unwrap().files[1].clone();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(file.with_extension("part"), vec![b'x'; 100]).unwrap();
    std::fs::remove_file(&file).unwrap();
    pull_from(&tail, &config).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[tokio::test]
async fn a_part_with_other_bytes_is_refused_and_not_kept() {
    let (mut tail, (folder, config)) = (TestTail::new(), cache(1));
    tail.files.get_mut("head/none/layer-0").unwrap()[0] ^= 1;
    let error = pull_from(&tail, &config).await.err().unwrap();
    assert!(
        matches!(&error, Error::Tail(TailError::ArtifactDigest { part, .. }) if part == "layer-0"),
        "{error}"
    );
    let digest = tail.manifest.model_digest.replace(':', "-");
    let none = folder.path().join("models").join(digest).join("none");
    let left: Vec<_> = std::fs::read_dir(none)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["embedding.gguf"]);
}

#[tokio::test]
async fn what_the_tail_does_not_serve_is_refused_with_what_it_does() {
    let tail = TestTail::new();
    let (_cache, config) = cache(4);
    let error = pull_from(&tail, &config).await.err().unwrap();
    assert!(error.to_string().contains("takes 0 to 3"), "{error}");
    let codec = Some(Codec::Int4 { group_size: 32 });
    let error = pull_from(
        &tail,
        &ClientConfig {
            split_layer: Some(1),
            codec,
            ..config.clone()
        },
    )
    .await;
    assert!(error.err().unwrap().to_string().contains("f32, int8"));
    let head_quantization = Some(Quantization::Q4K);
    let error = pull_from(
        &tail,
        &ClientConfig {
            split_layer: Some(1),
            head_quantization,
            ..config
        },
    )
    .await;
    assert!(error.err().unwrap().to_string().contains("offers none"));
}

#[test]
fn a_device_answers_alone_only_where_the_tail_lets_it() {
    let manifest = TestTail::new().manifest;
    let config = |split_layer| ClientConfig {
        split_layer: Some(split_layer),
        ..ClientConfig::default()
    };
    let error = choose(&manifest, &config(4)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Request(RequestError::OnDeviceAnswer { num_layers: 4, .. })
        ),
        "{error}"
    );
    let allowed = Manifest {
        on_device_answers: true,
        ..manifest.clone()
    };
    assert_eq!(choose(&allowed, &config(4)).unwrap().split_layer, 4);
    assert!(choose(&allowed, &config(5)).is_err());
    let mut of_before = manifest;
    of_before.split.max = 4;
    assert_eq!(choose(&of_before, &config(4)).unwrap().split_layer, 4);
}

#[test]
fn a_manifest_of_before_allows_token_ids_and_no_answers_alone() {
    let mut json = serde_json::to_value(TestTail::new().manifest).unwrap();
    let fields = json.as_object_mut().unwrap();
    assert!(
        fields.remove("token_upload").is_some() && fields.remove("on_device_answers").is_some()
    );
    let manifest: Manifest = serde_json::from_value(json).unwrap();
    assert!(manifest.token_upload && !manifest.allows_on_device_answers());
}

#[tokio::test]
async fn penalties_are_refused_here_where_token_ids_may_not_leave() {
    let (mut tail, (_cache, config)) = (TestTail::new(), cache(0));
    tail.manifest.token_upload = false;
    let url = format!("ws://{}", tail.serve().await);
    let client = Client::connect(&url, config).await.unwrap();
    let mut request = GenerateRequest::new(crate::Prompt::TokenIds(vec![1, 2]));
    request.sampling.presence_penalty = 0.5;
    let error = client.generate(request).await.err().unwrap();
    assert!(
        matches!(error, Error::Request(RequestError::TokenUpload)),
        "{error}"
    );
    assert!(tail.opens.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_tail_that_is_not_there_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (_cache, config) = cache(0);
    let error = pull(&format!("ws://{address}"), &config)
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
