//! Images of the real programs.

use std::path::Path;

use anyhow::Result;
use e2e::program::program;
use headway_images::recipe::{PARTS, Part};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn archive(part: &Part, path: &Path) -> Result<()> {
    let name = format!("headway.test/{}:test", part.name);
    let image = part.image(name, &program(part.program), &root().join("LICENSE"), "0")?;
    image.write_archive(path)
}

#[test]
fn images_of_the_same_programs_have_the_same_bytes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for part in &PARTS {
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        archive(part, &one)?;
        archive(part, &two)?;
        assert!(std::fs::read(one)? == std::fs::read(two)?, "{}", part.name);
    }
    Ok(())
}

#[test]
fn dockerfile_runs_what_the_archives_run() -> Result<()> {
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile"))?;
    for part in &PARTS {
        let image = part.image(
            String::new(),
            &program(part.program),
            &root().join("LICENSE"),
            "0",
        )?;
        let stage = format!("FROM scratch AS {}\n", part.name);
        let stage = dockerfile.split(&stage).nth(1).expect("a stage");
        let stage = stage.split("\nFROM ").next().expect("its lines");
        assert!(stage.contains(&format!("USER {0}:{0}\n", image.user)));
        assert!(stage.contains(&format!("ENTRYPOINT [\"{}\"]\n", image.entrypoint)));
    }
    Ok(())
}
