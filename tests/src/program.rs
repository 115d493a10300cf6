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
    // A test is target/release/deps/name-0123456789abcdef, another program target/release/name.
    let folder = test.parent().expect("a program lies in a folder");
    let profile = if folder.ends_with("deps") {
        folder.parent().expect("deps lies in target/<profile>")
    } else {
        folder
    };
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is missing; `cargo build --release --bins` (or `cargo xtask test`) builds it",
        path.display()
    );
    path
}
