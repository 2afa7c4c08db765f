//! The config files on pages are read by the reader of config files, as they stand there.

use ringfence_cli::config;

use crate::{lines, pages, read};

/// A piece of TOML: the page, the line of its beginning, its text.
struct Piece {
    place: String,
    text: String,
}

fn pieces() -> Vec<Piece> {
    let mut found: Vec<Piece> = Vec::new();
    for path in pages() {
        let mut last = 0;
        for code in lines::code(&read(&path)).into_iter().filter(|code| code.block.as_deref() == Some("toml")) {
            match found.last_mut() {
                Some(piece) if last + 1 == code.line => piece.text += &format!("{}\n", code.text),
                _ => found.push(Piece { place: format!("{path}:{}", code.line), text: format!("{}\n", code.text) }),
            }
            last = code.line;
        }
    }
    found
}

/// What is wrong with a file.
fn problems(text: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.toml");
    std::fs::write(&path, text).unwrap();
    config::load(&path).err().map(|problems| problems.render(false, 120))
}

#[test]
fn files_on_pages_are_read_and_parts_fit_into_them() {
    let pieces = pieces();
    let starting = |key: &str| pieces.iter().filter(|piece| piece.text.starts_with(key)).collect::<Vec<_>>();
    let whole = [starting("[controller]"), starting("host = ")].concat();
    assert!(whole.len() >= 4, "{} whole files", whole.len());
    for piece in &whole {
        assert_eq!(problems(&piece.text), None, "{}", piece.place);
    }
    // What is shown as a part of a file goes behind the whole one of the page that sets up a cluster.
    let file = |key: &str| {
        let here = |piece: &&&Piece| piece.place.starts_with("docs/operating.md") && piece.text.starts_with(key);
        &whole.iter().find(here).expect("docs/operating.md has a whole one").text
    };
    let (controller, agent) = (file("[controller]"), file("host = "));
    for (whole, keys) in [(controller, &["[fence]", "[recovery]", "[[storage]]"][..]), (agent, &["[vhost]"])] {
        for key in keys {
            assert!(!starting(key).is_empty(), "no page shows a {key}");
            for piece in starting(key) {
                assert_eq!(problems(&format!("{whole}{}", piece.text)), None, "{}", piece.place);
            }
        }
    }
    assert!(problems(&format!("{controller}[fence]\nprofil = \"safe\"\n")).is_some(), "a mistake is seen");
}
