//! The programs of this workspace, as a user has them.

use std::path::PathBuf;

/// The path of a program that cargo has built in the profile of this test.
///
/// # Panics
/// Where it is not there. A program that is older than its sources is not noticed: `cargo xtask test` builds
/// both before it runs the tests.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    // target/release/deps/name_of_the_test-0123456789abcdef
    let profile = test.parent().and_then(std::path::Path::parent);
    let path = profile
        .expect("tests lie in target/<profile>/deps")
        .join(name);
    assert!(
        path.is_file(),
        "{} is missing; `cargo build --release -p tail-server -p edge-lite` (or `cargo xtask test`) builds it",
        path.display()
    );
    path
}
