//! The shared libraries of a program, with its loader: the only things that it needs of a distribution.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Paths of the libraries that the loader would map, and of the loader; none for a static program.
///
/// # Errors
/// Where one of them is not on this machine, or `ldd` does not know the file.
pub fn of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("running ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("not a dynamic executable") || text.contains("statically linked") {
        return Ok(Vec::new());
    }
    ensure!(
        output.status.success(),
        "ldd {}: {}",
        program.display(),
        complaint.trim()
    );
    parse(&text)
}

/// Lines are `name => path (address)`, or `path (address)` for the loader, or `name (address)` for what the kernel
/// brings along.
fn parse(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines() {
        ensure!(
            !line.contains("not found"),
            "a shared library is missing on this machine: {}",
            line.trim()
        );
        let path = line.rsplit(" => ").next().unwrap_or(line);
        let path = path.split(" (").next().unwrap_or(path).trim();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_found_and_the_kernels_part_is_not() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let wanted = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse(text).unwrap(), wanted.map(PathBuf::from));
    }

    #[test]
    fn a_missing_library_is_an_error() {
        assert!(parse("\tlibssl.so.3 => not found\n").is_err());
    }
}
