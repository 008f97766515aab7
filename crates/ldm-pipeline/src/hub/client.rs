//! What is asked of a hub, over HTTP.

use std::{io::Read, time::Duration};

use hf_hub::Repo;
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{Response, StatusCode, Uri, header},
};

use super::{Hub, HubError, is_name};

/// Redirects that are followed while looking for a file's headers.
const MAX_REDIRECTS: usize = 10;

/// Talks to one hub about one repository.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    /// Follows redirects.
    agent: Agent,
    /// Doesn't, because the headers wanted are those of the hub, not of the store that it points to.
    headers_agent: Agent,
}

/// What a hub says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// The commit that the revision stands for.
    pub(super) commit: String,
    /// The contents' name, for large files their SHA-256.
    pub(super) etag: String,
    /// In bytes.
    pub(super) size: u64,
}

/// The bytes of a file from some position on.
pub(super) struct Content {
    /// Position of the first byte: as asked for, or 0 where the server has no ranges.
    pub(super) start: u64,
    pub(super) body: Box<dyn Read>,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        let config = || {
            Agent::config_builder()
                .http_status_as_error(false)
                // Ranges count the bytes of the file, not of a compressed one.
                .accept_encoding("identity")
                .user_agent(concat!("ldm/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(Duration::from_secs(20)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .timeout_per_read(Some(Duration::from_secs(60)))
        };
        Self {
            hub,
            agent: config()
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .build()
                .into(),
            headers_agent: config().max_redirects(0).build().into(),
        }
    }

    pub(super) fn url(&self, repo: &Repo, file: &str) -> String {
        format!(
            "{}/{}/resolve/{}/{file}",
            self.hub.endpoint,
            repo.url(),
            repo.url_revision()
        )
    }

    /// Asks for a file without its contents.
    pub(super) fn metadata(&self, repo: &Repo, file: &str) -> Result<Metadata, HubError> {
        let first = self.url(repo, file);
        let mut url = first.clone();
        let mut response = self.get(&self.headers_agent, &url, "bytes=0-0", true)?;
        for _ in 0..MAX_REDIRECTS {
            // Renamed repositories are redirected within the hub; contents may lie elsewhere.
            match relative_redirect(&response, &url) {
                Some(next) => url = next,
                None => break,
            }
            response = self.get(&self.headers_agent, &url, "bytes=0-0", true)?;
        }
        let missing = |header| HubError::Header {
            url: first.clone(),
            header,
        };
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refusal(repo, file, &first, &response));
        }
        let commit = text(&response, "x-repo-commit")
            .filter(|commit| is_name(commit))
            .ok_or_else(|| missing("x-repo-commit"))?;
        let etag = text(&response, "x-linked-etag")
            .or_else(|| text(&response, "etag"))
            .map(|etag| etag.trim_start_matches("W/").replace('"', ""))
            .filter(|etag| is_name(etag))
            .ok_or_else(|| missing("etag"))?;
        let size = match size(&response) {
            Some(size) => size,
            None if status.is_redirection() => {
                let location = text(&response, "location").ok_or_else(|| missing("location"))?;
                let stored = self.get(&self.agent, &location, "bytes=0-0", false)?;
                if !stored.status().is_success() {
                    return Err(self.refusal(repo, file, &location, &stored));
                }
                size(&stored).ok_or_else(|| missing("content-range"))?
            }
            None => return Err(missing("content-range")),
        };
        Ok(Metadata { commit, etag, size })
    }

    /// Asks for the bytes of a file from `start` on, or to `end` (exclusive).
    pub(super) fn content(
        &self,
        repo: &Repo,
        file: &str,
        start: u64,
        end: Option<u64>,
    ) -> Result<Content, HubError> {
        let url = self.url(repo, file);
        let range = match end {
            Some(end) => format!("bytes={start}-{}", end - 1),
            None => format!("bytes={start}-"),
        };
        let response = self.get(&self.agent, &url, &range, true)?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => text(&response, "content-range")
                .and_then(|range| {
                    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
                    first.parse().ok()
                })
                .filter(|first| *first == start)
                .ok_or(HubError::Header {
                    url,
                    header: "content-range",
                })?,
            _ => return Err(self.refusal(repo, file, &url, &response)),
        };
        Ok(Content {
            start,
            body: Box::new(response.into_body().into_reader()),
        })
    }

    fn get(
        &self,
        agent: &Agent,
        url: &str,
        range: &str,
        with_token: bool,
    ) -> Result<Response<Body>, HubError> {
        let mut request = agent.get(url).header(header::RANGE, range);
        if let Some(token) = self.hub.token.as_ref().filter(|_| with_token) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.call().map_err(|source| HubError::Connection {
            url: url.to_owned(),
            source: Box::new(source),
        })
    }

    /// What a status that isn't success means.
    fn refusal<B>(&self, repo: &Repo, file: &str, url: &str, response: &Response<B>) -> HubError {
        let repository = repo.url();
        let revision = repo.revision().to_owned();
        let code = text(response, "x-error-code").unwrap_or_default();
        match (response.status().as_u16(), code.as_str()) {
            // The hub doesn't tell strangers whether a private repository exists.
            (401 | 404, "RepoNotFound") => HubError::NoRepository { repository },
            (404, "RevisionNotFound") => HubError::NoRevision {
                repository,
                revision,
            },
            (404, _) => HubError::NoFile {
                repository,
                revision,
                file: file.to_owned(),
            },
            (status @ (401 | 403), _) => HubError::Refused {
                repository,
                file: file.to_owned(),
                status,
                with_token: self.hub.token.is_some(),
            },
            (status, _) => HubError::Status {
                url: url.to_owned(),
                status,
            },
        }
    }
}

fn text<B>(response: &Response<B>, name: &str) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    Some(value.trim().to_owned())
}

/// Bytes of the whole file.
fn size<B>(response: &Response<B>) -> Option<u64> {
    let after_slash = |range: String| range.rsplit_once('/')?.1.parse().ok();
    text(response, "x-linked-size")
        .and_then(|size| size.parse().ok())
        .or_else(|| text(response, "content-range").and_then(after_slash))
        .or_else(|| {
            let whole = response.status() == StatusCode::OK;
            text(response, "content-length")
                .filter(|_| whole)?
                .parse()
                .ok()
        })
}

/// Where a response points to within the same host.
fn relative_redirect<B>(response: &Response<B>, from: &str) -> Option<String> {
    if !response.status().is_redirection() {
        return None;
    }
    let location: Uri = text(response, "location")?.parse().ok()?;
    if location.host().is_some() {
        return None;
    }
    let mut parts = from.parse::<Uri>().ok()?.into_parts();
    parts.path_and_query = location.into_parts().path_and_query;
    Some(Uri::from_parts(parts).ok()?.to_string())
}
