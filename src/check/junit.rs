//! A report in JUnit's XML, as continuous integration systems read it: a suite per function, a test case per random case. Without times:
//! the same results are the same bytes.

use super::Report;
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event};

/// The report, or why there is none, as XML.
pub fn xml(file: &str, report: &Result<Report, String>) -> Result<String, String> {
    let mut w = Writer::new_with_indent(vec![], b' ', 2);
    write(&mut w, file, report).map_err(|e| e.to_string())?;
    String::from_utf8(w.into_inner()).map_err(|e| e.to_string())
}

fn write(w: &mut Writer<Vec<u8>>, file: &str, report: &Result<Report, String>) -> std::io::Result<()> {
    w.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let mut suites: Vec<&str> = vec![];
    if let Ok(r) = report {
        suites = r.rows.iter().map(|r| r.function.as_str()).chain(r.errors.iter().map(|e| e.0.as_str())).collect();
        suites.dedup();
    }
    let (mut tests, mut failures, mut errors) = (0, 0, 0);
    match report {
        Ok(r) => {
            tests = r.rows.len() + r.errors.len();
            failures = r.rows.iter().filter(|r| r.failure.is_some()).count();
            errors = r.errors.len();
        }
        Err(_) => (tests, errors) = (tests + 1, errors + 1),
    }
    let counts = |name: &str, e: &str, counts: [usize; 3]| {
        let mut start = BytesStart::new(e.to_string());
        start.push_attribute(("name", &*clean(name)));
        for (k, n) in ["tests", "failures", "errors"].iter().zip(counts) {
            start.push_attribute((*k, n.to_string().as_str()));
        }
        start
    };
    w.write_event(Event::Start(counts("pushforward check", "testsuites", [tests, failures, errors])))?;
    match report {
        Err(why) => {
            w.write_event(Event::Start(counts(file, "testsuite", [1, 0, 1])))?;
            case(w, file, "program", &[("error", why)])?;
            w.write_event(Event::End(BytesEnd::new("testsuite")))?;
        }
        Ok(r) => {
            for name in suites {
                let rows: Vec<_> = r.rows.iter().filter(|r| r.function == name).collect();
                let errors: Vec<_> = r.errors.iter().filter(|e| e.0 == name).collect();
                let failures = rows.iter().filter(|r| r.failure.is_some()).count();
                w.write_event(Event::Start(counts(name, "testsuite", [rows.len() + errors.len(), failures, errors.len()])))?;
                for row in rows {
                    let sizes: Vec<String> = row.figures.sizes.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    let refusals: Vec<String> = row.figures.machines.iter().filter_map(|(m, o)| o.as_ref().err().map(|e| format!("{} refuses: {e}", super::MACHINES[*m].0))).collect();
                    let mut inside: Vec<(&str, &str)> = row.failure.iter().map(|f| ("failure", f.as_str())).collect();
                    inside.extend(refusals.iter().map(|r| ("system-out", r.as_str())));
                    case(w, &format!("{file}:{name}"), &format!("seed {} {}", row.seed, sizes.join(" ")), &inside)?;
                }
                for (_, why) in errors {
                    case(w, &format!("{file}:{name}"), "program", &[("error", why)])?;
                }
                w.write_event(Event::End(BytesEnd::new("testsuite")))?;
            }
        }
    }
    w.write_event(Event::End(BytesEnd::new("testsuites")))?;
    w.get_mut().push(b'\n');
    Ok(())
}

fn case(w: &mut Writer<Vec<u8>>, class: &str, name: &str, inside: &[(&str, &str)]) -> std::io::Result<()> {
    let mut start = BytesStart::new("testcase");
    start.push_attribute(("classname", &*clean(class)));
    start.push_attribute(("name", &*clean(name.trim_end())));
    if inside.is_empty() {
        return w.write_event(Event::Empty(start));
    }
    w.write_event(Event::Start(start))?;
    for (tag, text) in inside {
        let text = clean(text);
        let mut open = BytesStart::new(*tag);
        if *tag != "system-out" {
            open.push_attribute(("message", text.lines().next().unwrap_or("")));
        }
        w.write_event(Event::Start(open))?;
        w.write_event(Event::Text(BytesText::new(&text)))?;
        w.write_event(Event::End(BytesEnd::new(*tag)))?;
    }
    w.write_event(Event::End(BytesEnd::new("testcase")))
}

/// Without characters that XML 1.0 has no way to write.
fn clean(s: &str) -> String {
    s.chars().filter(|c| !c.is_control() || *c == '\n' || *c == '\t').collect()
}
