//! The page of the HTTP API, from its own description.

use std::fmt::Write;

use serde_json::Value;

use crate::{page, table};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// What a description says, as far as it is plain: blocks of code in it stay what they are.
fn description(of: &Value) -> &str {
    of["description"].as_str().unwrap_or_default().trim()
}

/// A schema's type in a word or two, with a link where it has a section of its own.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", anchor(name));
    }
    if let Some(any) = schema["oneOf"].as_array() {
        return any.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let plain = |name: &str| match (name, schema["format"].as_str()) {
        ("array", _) => format!("list of {}", kind(&schema["items"])),
        ("object", _) if schema["additionalProperties"].is_object() => {
            format!("object of {}", kind(&schema["additionalProperties"]))
        }
        (name, Some(format)) => format!("{name} ({format})"),
        (name, None) => name.to_owned(),
    };
    match &schema["type"] {
        Value::String(name) => plain(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(plain).collect::<Vec<_>>().join(" or "),
        _ => "any JSON".to_owned(),
    }
}

/// The anchor that Markdown gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn content(of: &Value) -> String {
    let types = of["content"].as_object().into_iter().flatten();
    let types = types.map(|(name, of)| match of["schema"].is_object() {
        true => format!("`{name}`: {}", kind(&of["schema"])),
        false => format!("`{name}`"),
    });
    types.collect::<Vec<_>>().join(", ")
}

fn operation(method: &str, path: &str, of: &Value, text: &mut String) {
    let _ = writeln!(text, "### {} {path}\n", method.to_uppercase());
    for says in [of["summary"].as_str().unwrap_or_default(), description(of)].iter().filter(|says| !says.is_empty()) {
        let _ = writeln!(text, "{}{}\n", says, if says.ends_with(['.', '`']) { "" } else { "." });
    }
    let parameters: Vec<Vec<String>> = of["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|of| {
            let text = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
            let needed = if of["required"] == true { "yes" } else { "" };
            vec![
                format!("`{}`", text("name")),
                text("in"),
                kind(&of["schema"]),
                needed.to_owned(),
                description(of).to_owned(),
            ]
        })
        .collect();
    if !parameters.is_empty() {
        let _ = writeln!(text, "{}", table(&["parameter", "in", "type", "needed", "meaning"], &parameters));
    }
    if of["requestBody"].is_object() {
        let _ = writeln!(text, "Body: {}.\n", content(&of["requestBody"]));
    }
    let answers = of["responses"].as_object().into_iter().flatten().map(|(status, of)| {
        let status = if status == "default" { "every other status" } else { status };
        vec![status.to_owned(), content(of), description(of).to_owned()]
    });
    let _ = writeln!(text, "{}", table(&["answer", "content", "meaning"], &answers.collect::<Vec<_>>()));
}

fn properties(of: &Value) -> Vec<Vec<String>> {
    let needed = |name: &str| of["required"].as_array().is_some_and(|all| all.iter().any(|of| of == name));
    let of = of["properties"].as_object().into_iter().flatten();
    of.map(|(name, of)| {
        let always = if needed(name) { "yes" } else { "" };
        vec![format!("`{name}`"), kind(of), always.to_owned(), description(of).to_owned()]
    })
    .collect()
}

fn schema(name: &str, of: &Value, text: &mut String) {
    let _ = writeln!(text, "### {name}\n\n{}\n", description(of));
    if let Some(variants) = of["oneOf"].as_array() {
        // An order: one key says which, and what is under it says how.
        let mut keyed: Vec<_> = variants.iter().flat_map(properties).collect();
        keyed.iter_mut().for_each(|row| drop(row.remove(2)));
        match keyed.is_empty() {
            false => drop(writeln!(text, "Exactly one of:\n\n{}", table(&["key", "type", "meaning"], &keyed))),
            true => drop(writeln!(text, "One of: {}.\n", variants.iter().map(kind).collect::<Vec<_>>().join(", "))),
        }
    } else if let Some(values) = of["enum"].as_array() {
        let values: Vec<_> = values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        let _ = writeln!(text, "One of: {}.\n", values.join(", "));
    } else if of["properties"].is_object() {
        let _ = writeln!(text, "{}", table(&["key", "type", "always", "meaning"], &properties(of)));
    } else {
        let _ = writeln!(text, "A {}.\n", kind(of));
    }
}

#[test]
fn the_page_of_the_api_is_its_description() {
    let document = serde_json::to_value(ringfence_server::http::openapi()).unwrap();
    let mut text = format!(
        "# HTTP API\n\n{}\n\nThis page is made from `GET /openapi.json`; a test fails where they differ. What a token \
         may, and how it is sent: [security](security.md#the-api-and-the-page). Lists take `offset` and `limit`; every \
         answer has an `ETag`.\n",
        description(&document["info"])
    );
    let operations = document["paths"].as_object().unwrap().iter().flat_map(|(path, of)| {
        METHODS.iter().filter(|method| of[**method].is_object()).map(move |method| (*method, path, &of[*method]))
    });
    let operations: Vec<_> = operations.collect();
    let mut told = 0;
    for tag in document["tags"].as_array().unwrap() {
        let _ = writeln!(text, "\n## {}\n", description(tag));
        for (method, path, of) in operations.iter().filter(|(_, _, of)| of["tags"][0] == tag["name"]) {
            operation(method, path, of, &mut text);
            told += 1;
        }
    }
    assert_eq!(told, operations.len(), "an operation is under none of the tags");
    text += "\n## What is sent and answered\n\n";
    for (name, of) in document["components"]["schemas"].as_object().unwrap() {
        schema(name, of, &mut text);
    }
    while text.contains("\n\n\n") {
        text = text.replace("\n\n\n", "\n\n");
    }
    page("docs/api.md", &format!("{}\n", text.trim_end()));
}
