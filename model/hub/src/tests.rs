//! Downloads from real HTTP servers on loopback.

mod server;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::server::{Behaviour, COMMIT, Served, Server, sha256, walk};
use crate::{Hub, HubError, Source, resolve};

const FOLDER: [(&str, &[u8]); 5] = [
    ("README.md", b"not fetched"),
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"model\":{}}"),
    ("generation_config.json", b"{\"eos_token_id\":2}"),
    ("model.safetensors", b"weights"),
];

/// A model of some mebibytes, so that its body comes in many pieces.
fn gguf() -> Vec<u8> {
    let rest = (0_u32..1 << 20).flat_map(u32::to_le_bytes);
    b"GGUF".iter().copied().chain(rest).collect()
}

fn cache() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// What is in a cache but whole files.
fn unfinished(cache: &Path) -> Vec<PathBuf> {
    let is_unfinished = |path: &PathBuf| {
        let name = crate::file_name(path);
        name.contains(".part-") || name.ends_with(".lease")
    };
    walk(cache).into_iter().filter(is_unfinished).collect()
}

#[test]
fn an_existing_path_passes_through() {
    let folder = cache();
    let path = folder.path().to_str().unwrap();
    assert_eq!(resolve(path, folder.path()).unwrap(), folder.path());
}

#[test]
fn a_missing_path_is_named() {
    let error = resolve("/no/such/model", Path::new("/unused")).unwrap_err();
    assert!(matches!(error, HubError::NoSuchPath { .. }));
    assert_eq!(error.reason(), "PathMissing");
    assert!(error.to_string().contains("/no/such/model"), "{error}");
}

#[test]
fn a_file_of_this_machine_is_checked_where_a_digest_is_given() {
    let folder = cache();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, "GGUF").unwrap();
    let source = path.to_str().unwrap();
    let hub = |digest: &str| Hub::new(folder.path()).with_sha256(Some(digest));
    assert_eq!(
        hub(&sha256(b"GGUF").to_uppercase())
            .resolve(source)
            .unwrap(),
        path
    );
    let error = hub(&sha256(b"other")).resolve(source).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&sha256(b"GGUF")) && text.contains(&sha256(b"other")),
        "{text}"
    );
    let error = hub(&sha256(b"x")).resolve(folder.path().to_str().unwrap());
    assert!(matches!(error, Err(HubError::Source { .. })));
}

#[test]
fn sources_are_told_apart_by_their_scheme() {
    let repository = |revision: &str, file: Option<&str>| Source::Repository {
        id: "org/repo".to_owned(),
        revision: revision.to_owned(),
        file: file.map(ToOwned::to_owned),
    };
    let parsed = |text: &str| Source::parse(text).unwrap();
    assert_eq!(parsed("hf://org/repo"), repository("main", None));
    assert_eq!(parsed("hf://org/repo@v1.0/"), repository("v1.0", None));
    let file = repository("v1", Some("a/b.gguf"));
    assert_eq!(parsed("hf://org/repo@v1/a/b.gguf"), file);
    assert_eq!(
        parsed("models/a.gguf"),
        Source::Local("models/a.gguf".into())
    );
    let url = "https://host:1/x/m.gguf?download=true";
    assert!(matches!(parsed(url), Source::Url { file, .. } if file == "m.gguf"));
    assert!(matches!(parsed("https://host/x/"), Source::Folder { .. }));
}

#[test]
fn malformed_sources_say_what_would_be_right() {
    for (text, expected) in [
        ("hf://repo", "hf://org/repo"),
        ("hf://org/repo/weights.bin", "hf://org/repo/file.gguf"),
        ("hf://org/../x.gguf", "hf://org/repo"),
        ("hf://org/repo@/x.gguf", "hf://org/repo"),
        ("https://host/model.bin", ".gguf"),
        ("https://host.gguf", ".gguf"),
        ("https://host/folder/?token=x", ".gguf"),
        ("s3://bucket/m.gguf", "hf:// or https://"),
        ("", "empty"),
    ] {
        let error = Source::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn addresses_without_encryption_or_with_a_password_are_refused() {
    let folder = cache();
    let hub = Hub::new(folder.path());
    for (source, expected) in [
        ("http://192.0.2.1/m.gguf?key=secret", "https://"),
        ("http://models.internal/m.gguf", "https://"),
        ("https://user:secret@192.0.2.1/m.gguf", "password"),
    ] {
        let error = hub.resolve(source).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let mirror = Hub::new(folder.path()).with_endpoint("http://mirror.internal");
    assert!(matches!(
        mirror.resolve("hf://org/repo"),
        Err(HubError::Source { .. })
    ));
}

#[test]
fn a_repository_becomes_a_folder_with_what_a_model_needs_and_its_commit() {
    let mut behaviour = Behaviour::with(&FOLDER);
    for lists_digests in [false, true] {
        behaviour.lists_digests = lists_digests;
        let server = Server::start(behaviour.clone());
        let cache = cache();
        let fetched = server.hub(cache.path()).fetch("hf://org/repo").unwrap();
        assert_eq!(fetched.commit.as_deref(), Some(COMMIT));
        for (name, bytes) in &FOLDER[1..] {
            assert_eq!(
                std::fs::read(fetched.path.join(name)).unwrap(),
                *bytes,
                "{name}"
            );
        }
        assert!(!fetched.path.join("README.md").exists());
        assert_eq!(unfinished(cache.path()), [] as [PathBuf; 0]);
    }
}

#[test]
fn a_file_that_is_not_what_the_hub_lists_is_refused() {
    let mut behaviour = Behaviour::with(&FOLDER);
    behaviour.lists_digests = true;
    let server = Server::start(Behaviour {
        sends_to: None,
        ..behaviour.clone()
    });
    let store = Server::start(Behaviour::with(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"model\":[]}"),
    ]));
    server.change(|behaviour| behaviour.sends_to = Some(store.url("")));
    let cache = cache();
    let error = server
        .hub(cache.path())
        .resolve("hf://org/repo")
        .unwrap_err();
    assert!(
        matches!(&error, HubError::Digest { what, .. } if what == "org/repo/tokenizer.json"),
        "{error}"
    );
    assert_eq!(unfinished(cache.path()), [] as [PathBuf; 0]);
}

#[test]
fn shards_are_those_that_the_index_names() {
    let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors", b"one"),
        ("model-00002-of-00002.safetensors", b"two"),
    ];
    let server = Server::start(Behaviour::with(&files));
    let cache = cache();
    for source in ["hf://org/repo".to_owned(), server.url("")] {
        let folder = server.hub(cache.path()).resolve(&source).unwrap();
        assert!(
            files.iter().all(|(name, _)| folder.join(name).exists()),
            "{source}"
        );
    }
}

#[test]
fn an_index_that_leads_out_of_its_folder_is_refused() {
    let files: [(&str, &[u8]); 3] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        (
            "model.safetensors.index.json",
            br#"{"weight_map":{"a":"../../x"}}"#,
        ),
    ];
    let server = Server::start(Behaviour::with(&files));
    let cache = cache();
    let error = server
        .hub(cache.path())
        .resolve(&server.url(""))
        .unwrap_err();
    assert!(matches!(error, HubError::Source { .. }), "{error}");
}

#[test]
fn a_second_run_downloads_nothing_and_needs_no_hub() {
    let server = Server::start(Behaviour::with(&FOLDER));
    let cache = cache();
    let first = server.hub(cache.path()).resolve("hf://org/repo").unwrap();
    let requests = server.seen().len();
    let second = server.hub(cache.path()).resolve("hf://org/repo").unwrap();
    assert_eq!(first, second);
    // What the name leads to was asked, and nothing else.
    assert_eq!(server.seen().len(), requests + 1);
    let pinned = format!("hf://org/repo@{COMMIT}");
    assert_eq!(server.hub(cache.path()).resolve(&pinned).unwrap(), first);
    assert_eq!(
        server.seen().len(),
        requests + 1,
        "a commit is not asked for"
    );
    server.change(|behaviour| behaviour.statuses = vec![(500, None); 20]);
    let offline = server.hub(cache.path()).fetch("hf://org/repo").unwrap();
    assert_eq!(
        (offline.path, offline.commit.as_deref()),
        (first, Some(COMMIT))
    );
}

#[test]
fn one_gguf_file_of_a_repository_is_fetched_alone_and_checked() {
    let files: [(&str, &[u8]); 2] = [("sub/m.gguf", b"GGUF...."), ("config.json", b"{}")];
    let server = Server::start(Behaviour::with(&files));
    let cache = cache();
    let source = "hf://org/repo/sub/m.gguf";
    let wrong = server.hub(cache.path()).with_sha256(Some(&sha256(b"x")));
    assert!(matches!(
        wrong.resolve(source),
        Err(HubError::Digest { .. })
    ));
    let hub = server
        .hub(cache.path())
        .with_sha256(Some(&sha256(b"GGUF....")));
    let path = hub.resolve(source).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"GGUF....");
    assert!(path.ends_with("sub/m.gguf"));
}

#[test]
fn a_gguf_repository_without_configuration_names_its_gguf_files() {
    let server = Server::start(Behaviour::with(&[("m-q8.gguf", b"GGUF")]));
    let cache = cache();
    let error = server
        .hub(cache.path())
        .resolve("hf://org/repo")
        .unwrap_err();
    assert!(
        matches!(&error, HubError::NoSuchFile { file, .. } if file == "config.json"),
        "{error}"
    );
    assert!(error.to_string().contains("m-q8.gguf"), "{error}");
}

#[test]
fn an_unknown_revision_is_named() {
    let server = Server::start(Behaviour::with(&FOLDER));
    let cache = cache();
    let error = server
        .hub(cache.path())
        .resolve("hf://org/repo@v9")
        .unwrap_err();
    assert!(
        matches!(&error, HubError::NotFound { status: 404, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("org/repo at revision v9"),
        "{error}"
    );
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_where_the_hub_sends() {
    let store = Server::start(Behaviour::with(&FOLDER));
    let mut behaviour = Behaviour::with(&FOLDER);
    behaviour.token = Some("hf_secret");
    behaviour.sends_to = Some(store.url(""));
    let server = Server::start(behaviour);
    let cache = cache();
    let token_file = cache.path().join("token");
    std::fs::write(&token_file, "hf_secret\n").unwrap();
    let hub = server.hub(cache.path()).with_token_file(Some(token_file));
    let folder = hub.resolve("hf://org/repo").unwrap();
    assert!(folder.join("model.safetensors").exists());
    let with_token = |server: &Server| {
        let seen = server.seen();
        seen.iter()
            .filter(|seen| seen.authorization.is_some())
            .count()
    };
    assert_eq!(with_token(&server), server.seen().len());
    assert_eq!((with_token(&store), store.seen().len()), (0, 4));
}

#[test]
fn refusals_of_a_hub_say_what_to_do() {
    let cache = cache();
    let mut behaviour = Behaviour::with(&FOLDER);
    behaviour.token = Some("right");
    let server = Server::start(behaviour);
    let error = |hub: Hub| hub.resolve("hf://org/repo").unwrap_err();
    let none = error(server.hub(cache.path()));
    assert_eq!(none.reason(), "Unauthorized");
    assert!(none.to_string().contains("give an access token"), "{none}");
    let wrong = error(server.hub(cache.path()).with_token("wrong"));
    assert!(wrong.to_string().contains("not valid"), "{wrong}");
    assert!(!wrong.to_string().contains("wrong"), "{wrong}");
    server.change(|behaviour| behaviour.statuses = vec![(403, None)]);
    let gated = error(server.hub(cache.path()).with_token("right"));
    assert!(gated.to_string().contains("ask for access"), "{gated}");
    let missing = server
        .hub(cache.path())
        .with_token_file(Some("/no/token".into()));
    assert_eq!(error(missing).reason(), "CredentialsUnusable");
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    let mut behaviour = Behaviour::with(&FOLDER);
    behaviour.statuses = vec![(429, Some("1")), (503, None)];
    let server = Server::start(behaviour);
    let cache = cache();
    let started = Instant::now();
    server.hub(cache.path()).resolve("hf://org/repo").unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    server.change(|behaviour| behaviour.statuses = vec![(429, None); 6]);
    let hub = server.hub(self::cache().path());
    let error = hub.resolve("hf://org/repo").unwrap_err();
    assert_eq!(error.reason(), "RateLimited");
    assert!(error.is_transient());
}

#[test]
fn redirects_end_and_never_leave_encryption() {
    let server = Server::start(Behaviour::with(&[]));
    let cache = cache();
    server.change(|behaviour| behaviour.sends_to = Some(server.url("")));
    let round = server
        .hub(cache.path())
        .resolve(&server.url("m.gguf"))
        .unwrap_err();
    assert!(matches!(&round, HubError::Redirect { .. }), "{round}");
    assert!(!round.to_string().contains("secret"), "{round}");
    server.change(|behaviour| behaviour.sends_to = Some("http://192.0.2.1/".to_owned()));
    let plain = server
        .hub(cache.path())
        .resolve(&server.url("m.gguf"))
        .unwrap_err();
    assert!(plain.to_string().contains("only https://"), "{plain}");
}

#[test]
fn a_private_authority_is_trusted_where_it_is_named_and_not_otherwise() {
    let (server, authority) = Server::start_with_tls(Behaviour::with(&[("m.gguf", &gguf())]));
    let cache = cache();
    let ca_file = cache.path().join("ca.crt");
    std::fs::write(&ca_file, authority).unwrap();
    let url = server.url("m.gguf");
    let mut hub = server.hub(cache.path());
    hub.patience.attempts = 1;
    let error = hub.resolve(&url).unwrap_err();
    assert!(matches!(&error, HubError::Unreachable { .. }), "{error}");
    assert_eq!(server.seen().len(), 0);
    let hub = hub
        .with_ca_file(Some(ca_file.clone()))
        .with_sha256(Some(&sha256(&gguf())));
    assert_eq!(std::fs::read(hub.resolve(&url).unwrap()).unwrap(), gguf());
    // From encrypted to plain, even on this machine.
    let plain = Server::start(Behaviour::with(&[("n.gguf", b"GGUF")]));
    server.change(|behaviour| behaviour.sends_to = Some(plain.url("")));
    let error = hub.resolve(&server.url("n.gguf")).unwrap_err();
    assert!(matches!(&error, HubError::Redirect { .. }), "{error}");
    std::fs::write(&ca_file, "no certificate").unwrap();
    assert_eq!(
        hub.resolve(&server.url("o.gguf")).unwrap_err().reason(),
        "CredentialsUnusable"
    );
}

#[test]
fn a_url_is_downloaded_once_and_reported() {
    let model = gguf();
    let server = Server::start(Behaviour::with(&[("m.gguf", &model)]));
    let cache = cache();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hub = server.hub(cache.path()).with_progress({
        let seen = Arc::clone(&seen);
        Arc::new(move |progress| seen.lock().unwrap().push(progress.clone()))
    });
    let path = hub.resolve(&server.url("m.gguf?key=secret")).unwrap();
    assert_eq!(hub.resolve(&server.url("m.gguf?key=secret")).unwrap(), path);
    assert_eq!(std::fs::read(path).unwrap(), model);
    assert_eq!(server.seen().len(), 1);
    let seen = seen.lock().unwrap();
    assert!(
        seen.iter()
            .all(|progress| !progress.file.contains("secret"))
    );
    assert!(
        seen.iter()
            .any(|progress| progress.done_bytes < progress.total_bytes)
    );
    let end = model.len() as u64;
    let first_end = seen
        .iter()
        .find(|progress| progress.done_bytes == end)
        .unwrap();
    assert_eq!(
        (first_end.total_bytes, first_end.received_bytes),
        (end, end)
    );
}

#[test]
fn a_download_that_breaks_goes_on_where_it_broke() {
    let model = gguf();
    let mut behaviour = Behaviour::with(&[("m.gguf", &model)]);
    behaviour.breaks = vec![1_000_000; 3];
    let server = Server::start(behaviour);
    let cache = cache();
    let hub = server.hub(cache.path()).with_sha256(Some(&sha256(&model)));
    assert_eq!(
        std::fs::read(hub.resolve(&server.url("m.gguf")).unwrap()).unwrap(),
        model
    );
    let ranges = server.ranges("m.gguf");
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert_eq!(ranges[0], "");
    assert!(
        ranges[1..].iter().all(|range| range.starts_with("bytes=")),
        "{ranges:?}"
    );
    assert_eq!(unfinished(cache.path()), [] as [PathBuf; 0]);
}

#[test]
fn what_came_before_the_process_ended_does_not_come_again() {
    let model = gguf();
    let mut behaviour = Behaviour::with(&[("m.gguf", &model)]);
    behaviour.breaks = vec![3_000_000];
    let server = Server::start(behaviour);
    let cache = cache();
    let mut hub = server.hub(cache.path());
    hub.patience.attempts = 1;
    let error = hub.resolve(&server.url("m.gguf")).unwrap_err();
    let HubError::Incomplete { got_bytes, .. } = error else {
        panic!("{error}")
    };
    assert!(got_bytes > 0);
    assert!(
        !walk(cache.path())
            .iter()
            .any(|path| path.ends_with("m.gguf"))
    );
    hub.resolve(&server.url("m.gguf")).unwrap();
    assert_eq!(
        server.ranges("m.gguf"),
        [String::new(), format!("bytes={got_bytes}-")]
    );
}

#[test]
fn a_server_without_ranges_or_etags_starts_again() {
    let model = gguf();
    for has_etag in [true, false] {
        let mut behaviour = Behaviour::with(&[("m.gguf", &model)]);
        behaviour.breaks = vec![1_000_000; 2];
        behaviour.ignores_ranges = true;
        if !has_etag {
            behaviour.files.get_mut("m.gguf").unwrap().etag = None;
        }
        let server = Server::start(behaviour);
        let cache = cache();
        let hub = server.hub(cache.path()).with_sha256(Some(&sha256(&model)));
        assert_eq!(
            std::fs::read(hub.resolve(&server.url("m.gguf")).unwrap()).unwrap(),
            model
        );
        assert_eq!(server.ranges("m.gguf").len(), 3);
    }
}

#[test]
fn a_file_that_has_changed_meanwhile_starts_again() {
    let (old, new) = (gguf(), [gguf(), b"more".to_vec()].concat());
    let mut behaviour = Behaviour::with(&[("m.gguf", &old)]);
    behaviour.breaks = vec![1_000_000];
    let server = Server::start(behaviour);
    let cache = cache();
    let mut hub = server.hub(cache.path());
    hub.patience.attempts = 1;
    hub.resolve(&server.url("m.gguf")).unwrap_err();
    server.change(|behaviour| *behaviour = Behaviour::with(&[("m.gguf", &new)]));
    let path = hub.resolve(&server.url("m.gguf")).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), new);
    // Shorter than what is here: the range cannot be answered at all.
    let mut behaviour = Behaviour::with(&[("n.gguf", &old)]);
    behaviour.breaks = vec![1_000_000];
    server.change(|now| *now = behaviour);
    hub.resolve(&server.url("n.gguf")).unwrap_err();
    server.change(|now| {
        *now = Behaviour::default();
        let served = Served {
            bytes: b"GGUF short".to_vec(),
            // A server that forgets to change it.
            etag: Some(format!("\"{}\"", sha256(&old))),
        };
        now.files.insert("n.gguf".to_owned(), served);
    });
    hub.patience.attempts = 3;
    let path = hub.resolve(&server.url("n.gguf")).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"GGUF short");
}

#[test]
fn a_wrong_digest_names_both_and_leaves_nothing() {
    let model = gguf();
    let server = Server::start(Behaviour::with(&[("m.gguf", &model)]));
    let cache = cache();
    let expected = sha256(b"another");
    let hub = server.hub(cache.path()).with_sha256(Some(&expected));
    let error = hub.resolve(&server.url("m.gguf")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&expected) && text.contains(&sha256(&model)),
        "{text}"
    );
    assert_eq!(
        (error.reason(), error.is_transient()),
        ("DigestMismatch", false)
    );
    assert_eq!(walk(cache.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_page_that_is_no_gguf_is_refused_and_not_kept() {
    let server = Server::start(Behaviour::with(&[("m.gguf", b"<html>please log in")]));
    let cache = cache();
    let error = server
        .hub(cache.path())
        .resolve(&server.url("m.gguf"))
        .unwrap_err();
    assert!(
        matches!(&error, HubError::NotGguf { start, .. } if start.starts_with("<html>")),
        "{error}"
    );
    assert_eq!(walk(cache.path()), [] as [PathBuf; 0]);
}

/// A file system of so many bytes; `None` where this user may mount none.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: usize) -> Option<Self> {
        let folder = cache();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(folder.path())
            .output();
        mounted.ok()?.status.success().then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn a_file_without_room_is_refused_before_it_is_written() {
    let Some(disk) = SmallDisk::mount(2 << 20) else {
        return;
    };
    let server = Server::start(Behaviour::with(&[("m.gguf", &gguf())]));
    let hub = server.hub(disk.0.path());
    let error = hub.resolve(&server.url("m.gguf")).unwrap_err();
    let HubError::NoSpace {
        free_bytes,
        needed_bytes,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert!(
        *free_bytes <= 2 << 20 && *needed_bytes >= 4 << 20,
        "{error}"
    );
    assert_eq!((error.reason(), error.is_transient()), ("NoSpace", false));
    let used: u64 = walk(disk.0.path())
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert!(used < 4096, "{used} bytes were written");
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_fills_up_meanwhile_is_named() {
    use std::io::Write as _;
    let path = Path::new("/dev/full");
    let mut full = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let error = crate::space::write_error(path, 77, full.write_all(b"x").unwrap_err());
    assert!(
        matches!(
            &error,
            HubError::NoSpace {
                needed_bytes: 77,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("/dev has"), "{error}");
}

#[test]
fn two_clients_of_one_cache_download_once() {
    let model = gguf();
    let server = Server::start(Behaviour::with(&[("m.gguf", &model)]));
    let cache = cache();
    let url = server.url("m.gguf");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let hub = server.hub(cache.path());
                let url = &url;
                scope.spawn(move || hub.resolve(url).unwrap())
            })
            .collect();
        for client in clients {
            assert_eq!(std::fs::read(client.join().unwrap()).unwrap(), model);
        }
    });
    assert_eq!(server.ranges("m.gguf"), [""]);
    assert_eq!(unfinished(cache.path()), [] as [PathBuf; 0]);
}

/// A safetensors file as far as its header's length goes.
fn safetensors(data: &[u8]) -> Vec<u8> {
    let header = br#"{"a":{}}"#;
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header, data].concat()
}

#[test]
fn only_the_ranges_that_are_wanted_are_fetched() {
    let data: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let weights = safetensors(&data);
    let files: [(&str, &[u8]); 3] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", &weights),
    ];
    let server = Server::start(Behaviour::with(&files));
    let cache = cache();
    let received = Arc::new(Mutex::new(0));
    let hub = server.hub(cache.path()).in_ranges(true).with_progress({
        let received = Arc::clone(&received);
        Arc::new(move |progress| *received.lock().unwrap() = progress.received_bytes)
    });
    for source in ["hf://org/repo".to_owned(), server.url("")] {
        let fetched = hub.fetch(&source).unwrap();
        let ranges = fetched.ranges.unwrap();
        let path = fetched.path.join("model.safetensors");
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            weights.len() as u64
        );
        server.change(|behaviour| behaviour.breaks = vec![70_000]);
        ranges
            .ensure(vec![
                (path.clone(), 2_100_000..2_200_000),
                (path.clone(), 2_000_000..2_100_000),
            ])
            .unwrap();
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read[..16], weights[..16]);
        assert_eq!(read[2_000_000..2_200_000], weights[2_000_000..2_200_000]);
        assert!(read[1_000_000..1_900_000].iter().all(|byte| *byte == 0));
        assert!(*received.lock().unwrap() < 300_000);
        // Another process finds what is here.
        let before = server.seen().len();
        let again = hub.fetch(&source).unwrap().ranges.unwrap();
        again
            .ensure(vec![(path.clone(), 2_050_000..2_060_000)])
            .unwrap();
        let weights_path = |seen: &&server::Seen| seen.path.ends_with(".safetensors");
        assert_eq!(
            server.seen()[before..].iter().filter(weights_path).count(),
            0
        );
        again.forget();
        again.ensure(vec![(path, 2_050_000..2_060_000)]).unwrap();
        assert_eq!(
            server.seen()[before..].iter().filter(weights_path).count(),
            1
        );
    }
}

#[test]
fn a_server_without_ranges_gives_the_whole_folder() {
    let weights = safetensors(b"data");
    let files: [(&str, &[u8]); 3] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", &weights),
    ];
    let mut behaviour = Behaviour::with(&files);
    behaviour.ignores_ranges = true;
    let server = Server::start(behaviour);
    let cache = cache();
    let fetched = server
        .hub(cache.path())
        .in_ranges(true)
        .fetch(&server.url(""))
        .unwrap();
    assert!(fetched.ranges.is_none());
    assert_eq!(
        std::fs::read(fetched.path.join("model.safetensors")).unwrap(),
        weights
    );
}
