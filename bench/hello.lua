-- For wrk: the same request over and over, every answer checked, and a line of JSON at the end.
-- Arguments: the body to send, what the body of each answer must contain, and further headers ("Name: value").

local threads = {}
checked, wrong, refused, sample = 0, 0, 0, ""

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  expected = arguments[2]
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  for number = 3, #arguments do
    local name, value = string.match(arguments[number], "^([^:]+): *(.*)$")
    wrk.headers[name] = value
  end
  wrk.body = arguments[1]
  prepared = wrk.format()
end

function request()
  return prepared
end

function response(status, headers, body)
  if status == 200 and string.find(body, expected, 1, true) then
    checked = checked + 1
  elseif status == 429 or status == 503 then
    refused = refused + 1
  else
    wrong = wrong + 1
    sample = status .. " " .. string.sub(body, 1, 200)
  end
end

function done(summary, latency, requests)
  local checked, wrong, refused, sample = 0, 0, 0, ""
  for _, thread in ipairs(threads) do
    checked = checked + thread:get("checked")
    wrong = wrong + thread:get("wrong")
    refused = refused + thread:get("refused")
    if thread:get("sample") ~= "" then sample = thread:get("sample") end
  end
  local quantiles = {}
  for _, share in ipairs({50, 95, 99}) do
    table.insert(quantiles, string.format('"p%d_us": %d', share, latency:percentile(share)))
  end
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    'BENCH {"checked": %d, "wrong": %d, "refused": %d, "errors": %d, "took_us": %d, "min_us": %d, "max_us": %d, %s, "sample": %q}\n',
    checked, wrong, refused, errors, summary.duration, latency.min, latency.max, table.concat(quantiles, ", "),
    (string.gsub(sample, "[^%w%p ]", "?"))))
end
