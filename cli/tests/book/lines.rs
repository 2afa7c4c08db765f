//! What is code in a page, and what is a link.

/// Code in a page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// The line it is in, from 1.
    pub(crate) line: usize,
    /// The language of its block; `None` for code within a sentence.
    pub(crate) block: Option<String>,
    /// What it says.
    pub(crate) text: String,
}

/// All code in a page, line by line.
pub(crate) fn code(page: &str) -> Vec<Code> {
    let mut found = Vec::new();
    let mut block: Option<String> = None;
    for (line, text) in page.lines().enumerate().map(|(n, text)| (n + 1, text)) {
        match (text.trim_start().strip_prefix("```"), &block) {
            (Some(_), Some(_)) => block = None,
            (Some(language), None) => block = Some(language.trim().to_owned()),
            (None, Some(language)) => {
                found.push(Code { line, block: Some(language.clone()), text: text.to_owned() });
            }
            (None, None) => {
                let inline = text.split('`').skip(1).step_by(2);
                found.extend(inline.map(|text| Code { line, block: None, text: text.to_owned() }));
            }
        }
    }
    assert_eq!(block, None, "a block of code has no end");
    found
}

/// Where the links and images of a page lead.
pub(crate) fn links(page: &str) -> Vec<String> {
    page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link.to_owned()).collect()
}

#[test]
fn code_is_found_in_blocks_and_sentences() {
    let page = "say `a b` and `c`\n```sh\nmake it   # now\n```\nthen `d`";
    let found: Vec<_> = code(page).into_iter().map(|code| (code.line, code.block, code.text)).collect();
    let inline = |line, text: &str| (line, None, text.to_owned());
    let block = (3, Some("sh".to_owned()), "make it   # now".to_owned());
    assert_eq!(found, [inline(1, "a b"), inline(1, "c"), block, inline(5, "d")]);
    assert_eq!(links("[a](b.md#c) ![d](e.png)"), ["b.md#c", "e.png"]);
}
