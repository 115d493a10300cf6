use std::time::Duration;

use super::*;

/// Too short.
const DIGEST: &str = "5a4d3b2c5e8a0f7a";

fn hex(token: &str) -> String {
    let digest = KeyDigest::of(&BearerToken::new(token));
    digest.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn find<'k>(keys: &'k KeySet, token: &str) -> Option<&'k Key> {
    keys.find(&KeyDigest::of(&BearerToken::new(token)))
}

#[test]
fn a_token_finds_its_tenant_and_a_wrong_one_finds_nobody() {
    let text = format!(
        "# devices\n\nacme:{}\nglobex/eu : {} \n",
        hex("one"),
        hex("two").to_uppercase()
    );
    let keys = KeySet::parse(text.as_bytes()).unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(find(&keys, "one").unwrap().tenant.to_string(), "key/acme");
    assert_eq!(
        find(&keys, "two").unwrap().tenant.to_string(),
        "key/globex/eu"
    );
    assert!(find(&keys, "three").is_none());
    assert!(find(&keys, "").is_none());
    assert!(find(&KeySet::default(), "one").is_none());
}

#[test]
fn the_digest_is_that_of_sha256sum() {
    // printf %s abc | sha256sum
    let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let keys = KeySet::parse(format!("acme:{known}").as_bytes()).unwrap();
    assert!(find(&keys, "abc").is_some());
}

#[test]
fn a_key_ends_at_its_time() {
    let text = format!("acme:{}:2001-09-09T03:46:40+02:00", hex("one"));
    let keys = KeySet::parse(text.as_bytes()).unwrap();
    let key = find(&keys, "one").unwrap();
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    assert_eq!(key.not_after, Some(end));
    assert!(!key.has_expired(end));
    assert!(key.has_expired(end + Duration::from_millis(1)));
}

#[test]
fn a_tenant_has_several_keys_and_a_key_has_one_tenant() {
    let (one, two) = (hex("one"), hex("two"));
    let keys = KeySet::parse(format!("acme:{one}\nacme:{two}").as_bytes()).unwrap();
    assert_eq!(keys.len(), 2);
    let twice = KeySet::parse(format!("acme:{one}\nacme:{two}\nglobex:{one}").as_bytes());
    assert_eq!(
        twice.unwrap_err(),
        KeyFileError::Twice { line: 3, first: 1 }
    );
}

#[test]
fn a_broken_line_is_named_by_its_number_and_never_repeated() {
    let good = hex("one");
    let cases = [
        ("secretwithoutacolon".to_owned(), "Form"),
        (format!(":{good}"), "Tenant"),
        (format!("two words:{good}"), "Tenant"),
        (format!("{}:{good}", "t".repeat(129)), "Tenant"),
        (format!("acme:{DIGEST}"), "Digest"),
        (format!("acme:{}", good.replace(&good[..1], "g")), "Digest"),
        (format!("acme:+{}", &good[1..]), "Digest"),
        (format!("acme:{good}:tomorrow"), "NotAfter"),
        (format!("acme:{good}:2030-01-31"), "NotAfter"),
        (format!("acme:{good}:"), "NotAfter"),
    ];
    for (line, kind) in cases {
        let error = KeySet::parse(format!("# first\n{line}").as_bytes()).unwrap_err();
        assert!(
            format!("{error:?}").starts_with(kind),
            "{line}: {error:?} is not {kind}"
        );
        let message = error.to_string();
        assert!(message.starts_with("line 2"), "{message}");
        assert!(
            !message.contains(&line) && !message.contains(&good),
            "{message}"
        );
    }
    assert_eq!(KeySet::parse(b"\xff").unwrap_err(), KeyFileError::Utf8);
}

#[test]
fn more_keys_than_the_limit_are_refused() {
    let lines: String = (0..=MAX_KEYS)
        .map(|index| format!("t:{}\n", hex(&index.to_string())))
        .collect();
    let line = MAX_KEYS + 1;
    assert_eq!(
        KeySet::parse(lines.as_bytes()).unwrap_err(),
        KeyFileError::TooMany { line }
    );
}
