"""What happens to jobs in Redis: each move is one script, and a script is atomic.

Where things are, all below `stockade:` but the document:

| key | holds |
|---|---|
| `job:<id>` (without prefix) | the document of the protocol that jobs in Redis come from; any server can read it |
| `job:<id>` | hash: the whole record |
| `lane:<owner>:<language>` | ready jobs of an owner in a language, in their order (a sorted set, by name) |
| `lanes:<owner>`, `turns:<language>` | in which languages an owner has ready jobs; whose turn it is in a language |
| `waiting`, `delayed`, `leases` | ready jobs by age, delayed ones by their moment, running ones by their lease |
| `dead` | dead letters |
| `all`, `account:<id>`, `batch:<id>` | jobs by creation, for lists |
| `counts`, `unended` | jobs by language and kind; unended ones by owner |
| `expiring`, `unrecorded`, `webhooks`, `watch` | what is left to do with ended jobs, and who looks on |
| `output:<id>` | stream: what a running job has printed |
| `events` | stream: what has changed |
| `workers`, `workers:seen` | workers, and when they were last heard of |

The order of ready jobs is in sorted sets and not in a stream with a consumer group: a stream is first in, first out,
and knows neither turns of accounts nor priorities. Streams carry what is in order by itself: output, and events.

Moments are whole microseconds since 1970 by Redis's own clock, which is the same for all servers.
"""

__all__ = ["SCRIPTS"]

_COMMON = r"""
local P = 'stockade:'

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

local function whole(x) return string.format('%.0f', x) end

-- A moment as RFC 3339 has it, without trailing zeros (days to dates as in the proleptic Gregorian calendar).
local function stamp(us)
  us = tonumber(us)
  local seconds = math.floor(us / 1000000)
  local fraction = us - seconds * 1000000
  local days = math.floor(seconds / 86400)
  local rest = seconds - days * 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local text = string.format('%04d-%02d-%02dT%02d:%02d:%02d', year, month, day,
    math.floor(rest / 3600), math.floor(rest % 3600 / 60), rest % 60)
  if fraction > 0 then
    text = text .. '.' .. string.gsub(string.format('%06d', fraction), '0+$', '')
  end
  return text .. 'Z'
end

local function event(what)
  redis.call('XADD', P .. 'events', 'MAXLEN', '~', '10000', '*', 'of', what)
end

local FIELDS = {'state', 'ready', 'owner', 'language', 'priority', 'run_at', 'seq', 'attempts', 'fence', 'cancel',
  'cancel_keep', 'account', 'batch', 'created', 'webhook', 'head', 'dead', 'recorded', 'forgotten'}

local function load(id)
  local values = redis.call('HMGET', P .. 'job:' .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local job = {id = id}
  for i, name in ipairs(FIELDS) do job[name] = values[i] end
  if job.forgotten == '1' then return nil end
  return job
end

local function set(job, ...)
  local values = {...}
  for i = 1, #values, 2 do job[values[i]] = values[i + 1] end
  redis.call('HSET', P .. 'job:' .. job.id, ...)
end

local function count(kind, language, by)
  local name = kind .. ':' .. language
  if redis.call('HINCRBY', P .. 'counts', name, by) == 0 then redis.call('HDEL', P .. 'counts', name) end
end

local function rank(job)
  return string.format('%03d:%017.0f:%012.0f:', 100 - job.priority, tonumber(job.run_at), tonumber(job.seq)) .. job.id
end

local function by_creation(job)
  return string.format('%017.0f:%012.0f:', tonumber(job.created), tonumber(job.seq)) .. job.id
end

local function add_ready(job)
  local owner, language = job.owner, job.language
  local lanes = P .. 'lanes:' .. owner
  if redis.call('EXISTS', lanes) == 0 then
    -- Who comes anew is last. Who has been waiting in another language keeps the turn it has.
    redis.call('ZADD', P .. 'turns:' .. language, redis.call('INCR', P .. 'turn'), owner)
  elseif redis.call('HEXISTS', lanes, language) == 0 then
    local other = redis.call('HKEYS', lanes)[1]
    redis.call('ZADD', P .. 'turns:' .. language, redis.call('ZSCORE', P .. 'turns:' .. other, owner), owner)
  end
  redis.call('HINCRBY', lanes, language, 1)
  redis.call('ZADD', P .. 'lane:' .. owner .. ':' .. language, 0, rank(job))
  redis.call('ZADD', P .. 'waiting', job.run_at, job.id)
  count('ready', language, 1)
end

local function remove_ready(job)
  local owner, language = job.owner, job.language
  redis.call('ZREM', P .. 'lane:' .. owner .. ':' .. language, rank(job))
  redis.call('ZREM', P .. 'waiting', job.id)
  if redis.call('HINCRBY', P .. 'lanes:' .. owner, language, -1) <= 0 then
    redis.call('HDEL', P .. 'lanes:' .. owner, language)
    redis.call('ZREM', P .. 'turns:' .. language, owner)
  end
  count('ready', language, -1)
end

local function enqueue(job, at)
  if tonumber(job.run_at) <= at then
    set(job, 'ready', '1')
    add_ready(job)
  else
    set(job, 'ready', '0')
    redis.call('ZADD', P .. 'delayed', job.run_at, job.id)
  end
end

local function promote(at)
  local due = redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', whole(at), 'LIMIT', 0, 1000)
  for _, id in ipairs(due) do
    redis.call('ZREM', P .. 'delayed', id)
    local job = load(id)
    if job then
      set(job, 'ready', '1')
      add_ready(job)
    end
  end
  return #due
end

-- Take a job out of wherever it waits or runs.
local function withdraw(job)
  if job.state == 'running' then
    redis.call('ZREM', P .. 'leases', job.id)
    count('running', job.language, -1)
  elseif job.ready == '1' then
    remove_ready(job)
  else
    redis.call('ZREM', P .. 'delayed', job.id)
  end
end

-- The document, whose beginning (id and request) stays as it was written.
local function document(job, result, error)
  local key = 'job:' .. job.id
  local times = redis.call('HMGET', P .. key, 'updated_at', 'started_at', 'ended_at')
  local state = job.state == 'cancelled' and 'failed' or job.state
  local text = redis.call('GETRANGE', key, 0, job.head - 1) .. ',"status":"' .. state .. '"'
  if result then
    text = text .. ',"result":' .. result .. ',"completedAt":"' .. stamp(times[3]) .. '"}'
    if error ~= '' then text = text .. ',"error":' .. error end
  end
  text = text .. ',"createdAt":"' .. stamp(job.created) .. '","updatedAt":"' .. stamp(times[1]) .. '"'
  if job.state ~= 'queued' and times[2] and times[2] ~= '' then
    text = text .. ',"startedAt":"' .. stamp(times[2]) .. '"'
  end
  if times[3] and times[3] ~= '' then text = text .. ',"completedAt":"' .. stamp(times[3]) .. '"' end
  redis.call('SET', key, text .. '}')
end

local function finish(job, at, state, result, keep, dead, told_result, told_error)
  local id = job.id
  withdraw(job)
  if redis.call('HINCRBY', P .. 'unended', job.owner, -1) <= 0 then redis.call('HDEL', P .. 'unended', job.owner) end
  redis.call('DECR', P .. 'unended:all')
  local expires = keep == '' and '' or whole(at + tonumber(keep))
  set(job, 'state', state, 'ready', '0', 'result', result, 'ended_at', whole(at), 'updated_at', whole(at),
    'expires_at', expires, 'lease_until', '', 'dead', dead)
  if job.webhook and job.webhook ~= '' then
    redis.call('HSET', P .. 'job:' .. id, 'webhook_at', whole(at))
    redis.call('ZADD', P .. 'webhooks', whole(at), id)
  end
  if dead == '1' then redis.call('ZADD', P .. 'dead', 0, by_creation(job)) end
  redis.call('ZADD', P .. 'unrecorded', job.seq, id)
  redis.call('ZREM', P .. 'watch', id)
  redis.call('EXPIRE', P .. 'output:' .. id, 60)
  document(job, told_result, told_error)
  if expires ~= '' then
    redis.call('ZADD', P .. 'expiring', expires, id)
    redis.call('PEXPIREAT', 'job:' .. id, whole(math.floor(tonumber(expires) / 1000)))
    -- Should nobody tidy up: a week later it goes by itself.
    redis.call('PEXPIREAT', P .. 'job:' .. id, whole(math.floor(tonumber(expires) / 1000) + 604800000))
  end
  event(id)
end

local function requeue(job, at, run_at, attempts)
  withdraw(job)
  set(job, 'state', 'queued', 'run_at', whole(run_at), 'attempts', whole(attempts), 'lease_until', '',
    'updated_at', whole(at))
  enqueue(job, at)
  document(job)
  event(job.id)
  event('work')
end

local function record(id) return redis.call('HGETALL', P .. 'job:' .. id) end

local function forget(id)
  local job = load(id)
  if not job or job.state == 'queued' or job.state == 'running' then return 0 end
  local place = by_creation(job)
  redis.call('ZREM', P .. 'all', place)
  redis.call('ZREM', P .. 'account:' .. job.account, place)
  if job.batch ~= '' then redis.call('ZREM', P .. 'batch:' .. job.batch, place) end
  redis.call('ZREM', P .. 'dead', place)
  redis.call('ZREM', P .. 'webhooks', id)
  redis.call('ZREM', P .. 'expiring', id)
  redis.call('DEL', 'job:' .. id, P .. 'output:' .. id)
  if job.recorded == '1' then
    redis.call('DEL', P .. 'job:' .. id)
  else
    -- What it used is not added up yet: so much of it stays until it is.
    redis.call('HDEL', P .. 'job:' .. id, 'code', 'stdin', 'stdout', 'stderr')
    redis.call('HSET', P .. 'job:' .. id, 'forgotten', '1')
  end
  event(id)
  return 1
end
"""

_ADD = r"""
-- ARGV: most of an owner, most, then 13 of each job.
local at = now()
local fresh, of = {}, {}
local total = 0
for i = 3, #ARGV, 13 do
  local id = ARGV[i]
  if redis.call('EXISTS', P .. 'job:' .. id) == 0 and not fresh[id] then
    fresh[id] = true
    total = total + 1
    of[ARGV[i + 1]] = (of[ARGV[i + 1]] or 0) + 1
  end
end
local there = tonumber(redis.call('GET', P .. 'unended:all') or '0')
if ARGV[2] ~= '' and there + total > tonumber(ARGV[2]) then return {'full', there} end
if ARGV[1] ~= '' then
  for owner, number in pairs(of) do
    local own = tonumber(redis.call('HGET', P .. 'unended', owner) or '0')
    if own + number > tonumber(ARGV[1]) then return {'too many', own} end
  end
end
for i = 3, #ARGV, 13 do
  local id, owner, language, priority, run_at = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local created, account, batch = ARGV[i + 5], ARGV[i + 6], ARGV[i + 7]
  if fresh[id] then
    fresh[id] = nil
    local job = {id = id, priority = priority}
    local webhook, told = ARGV[i + 8], ARGV[i + 9]
    redis.call('SET', 'job:' .. id, told)
    set(job, 'state', 'queued', 'owner', owner, 'language', language, 'priority', priority, 'run_at', run_at,
      'seq', whole(redis.call('INCR', P .. 'seq')), 'attempts', '0', 'fence', '0', 'cancel', '0', 'cancel_keep', '',
      'account', account, 'batch', batch, 'created', created, 'updated_at', created, 'webhook', webhook,
      'head', whole(#told), 'dead', '0', 'recorded', '0', 'code', ARGV[i + 10], 'stdin', ARGV[i + 11],
      'fixed', ARGV[i + 12])
    document(job)
    local place = by_creation(job)
    redis.call('ZADD', P .. 'all', 0, place)
    redis.call('ZADD', P .. 'account:' .. account, 0, place)
    if batch ~= '' then redis.call('ZADD', P .. 'batch:' .. batch, 0, place) end
    redis.call('HINCRBY', P .. 'unended', owner, 1)
    redis.call('INCR', P .. 'unended:all')
    -- Compared with the moment by the submitter's clock too, which may be ahead of ours.
    enqueue(job, math.max(at, tonumber(created)))
    event(id)
  end
end
if total > 0 then event('work') end
return {'ok', total}
"""

_CLAIM = r"""
-- ARGV: worker, most, lease in microseconds, '*' or languages (JSON), room by language (JSON).
local at = now()
while promote(at) == 1000 do end
local most = tonumber(ARGV[2])
local wanted, room = nil, cjson.decode(ARGV[5])
if ARGV[4] ~= '*' then
  wanted = {}
  for _, language in ipairs(cjson.decode(ARGV[4])) do wanted[language] = true end
end
local left, turns = {}, {}
local counts = redis.call('HGETALL', P .. 'counts')
for i = 1, #counts, 2 do
  local kind, language = string.match(counts[i], '^(%a+):(.*)$')
  if kind == 'ready' and (not wanted or wanted[language]) then
    local number = math.min(tonumber(counts[i + 1]), most, room[language] or most)
    if number > 0 then
      left[language] = number
      local next = redis.call('ZRANGE', P .. 'turns:' .. language, 0, most - 1, 'WITHSCORES')
      for j = 1, #next, 2 do turns[next[j]] = tonumber(next[j + 1]) end
    end
  end
end
local claimed = {}
while #claimed < most do
  local owner
  for one, turn in pairs(turns) do
    if not owner or turn < turns[owner] then owner = one end
  end
  if not owner then break end
  local best
  for language, number in pairs(left) do
    if number > 0 then
      local head = redis.call('ZRANGE', P .. 'lane:' .. owner .. ':' .. language, 0, 0)[1]
      if head and (not best or head < best) then best = head end
    end
  end
  if not best then
    turns[owner] = nil
  else
    local id = string.sub(best, 36)
    local job = load(id)
    left[job.language] = left[job.language] - 1
    remove_ready(job)
    set(job, 'state', 'running', 'ready', '0', 'started_at', whole(at), 'updated_at', whole(at),
      'attempts', whole(job.attempts + 1), 'fence', whole(job.fence + 1), 'worker', ARGV[1],
      'lease_until', whole(at + tonumber(ARGV[3])), 'noted', '0')
    redis.call('ZADD', P .. 'leases', whole(at + tonumber(ARGV[3])), id)
    count('running', job.language, 1)
    document(job)
    event(id)
    claimed[#claimed + 1] = record(id)
    local turn = redis.call('INCR', P .. 'turn')
    turns[owner] = turn
    for _, language in ipairs(redis.call('HKEYS', P .. 'lanes:' .. owner)) do
      redis.call('ZADD', P .. 'turns:' .. language, turn, owner)
    end
  end
end
local soonest = redis.call('ZRANGE', P .. 'delayed', 0, 0, 'WITHSCORES')[2]
return {claimed, soonest and whole(tonumber(soonest) - at) or ''}
"""

_FINISH = r"""
-- ARGV: id, fence, state, result, keep, dead, standard output and error, result and error of the document.
local job = load(ARGV[1])
if not job or job.state ~= 'running' or job.fence ~= ARGV[2] then return false end
redis.call('HSET', P .. 'job:' .. job.id, 'stdout', ARGV[7], 'stderr', ARGV[8])
finish(job, now(), ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[9], ARGV[10])
return record(job.id)
"""

_RELEASE = r"""
-- ARGV: id, fence, run_at, refund, cancelled (three texts).
local job = load(ARGV[1])
if not job or job.state ~= 'running' or job.fence ~= ARGV[2] then return 0 end
local at = now()
if job.cancel == '1' then
  finish(job, at, 'cancelled', ARGV[5], job.cancel_keep, '0', ARGV[6], ARGV[7])
else
  requeue(job, at, tonumber(ARGV[3]), ARGV[4] == '1' and job.attempts - 1 or job.attempts)
end
return 1
"""

_CANCEL = r"""
-- ARGV: id, keep, cancelled (three texts).
local job = load(ARGV[1])
if not job then return false end
if job.state == 'queued' then
  finish(job, now(), 'cancelled', ARGV[3], ARGV[2], '0', ARGV[4], ARGV[5])
elseif job.state == 'running' and job.cancel ~= '1' then
  set(job, 'cancel', '1', 'cancel_keep', ARGV[2], 'updated_at', whole(now()))
  document(job)
  event(job.id)
end
return record(job.id)
"""

_REAP = r"""
-- ARGV: most attempts, keep, cancelled (three texts), lost (three texts).
local at = now()
local requeued, ended = 0, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', '(' .. whole(at), 'LIMIT', 0, 500)) do
  local job = load(id)
  if not job then
    redis.call('ZREM', P .. 'leases', id)
  elseif job.cancel == '1' then
    finish(job, at, 'cancelled', ARGV[3], ARGV[2], '0', ARGV[4], ARGV[5])
    ended[#ended + 1] = record(id)
  elseif tonumber(job.attempts) >= tonumber(ARGV[1]) then
    finish(job, at, 'failed', ARGV[6], ARGV[2], '1', ARGV[7], ARGV[8])
    ended[#ended + 1] = record(id)
  else
    requeue(job, at, tonumber(job.run_at), tonumber(job.attempts))
    requeued = requeued + 1
  end
end
return {requeued, ended}
"""

_RENEW = r"""
-- ARGV: worker's id, worker (JSON), lease in microseconds, then id and fence of each job.
local at = now()
redis.call('HSET', P .. 'workers', ARGV[1], ARGV[2])
redis.call('ZADD', P .. 'workers:seen', whole(at), ARGV[1])
local lost, cancelled, watched = {}, {}, {}
for i = 4, #ARGV, 2 do
  local id = ARGV[i]
  local found = redis.call('HMGET', P .. 'job:' .. id, 'state', 'fence', 'cancel')
  if found[1] == 'running' and found[2] == ARGV[i + 1] then
    local until_ = whole(at + tonumber(ARGV[3]))
    redis.call('HSET', P .. 'job:' .. id, 'lease_until', until_)
    redis.call('ZADD', P .. 'leases', until_, id)
    if found[3] == '1' then cancelled[#cancelled + 1] = id end
    local looked_at = redis.call('ZSCORE', P .. 'watch', id)
    if looked_at and tonumber(looked_at) > at then watched[#watched + 1] = id end
  else
    lost[#lost + 1] = id
  end
end
return {lost, cancelled, watched}
"""

_WATCH = r"""
local job = load(ARGV[1])
if job and (job.state == 'queued' or job.state == 'running') then
  redis.call('ZADD', P .. 'watch', whole(now() + tonumber(ARGV[2])), job.id)
  event(job.id)
end
"""

_NOTE = r"""
-- ARGV: id, then number, fence, stream and data of each piece.
local job = load(ARGV[1])
if not job then return end
local key = P .. 'output:' .. job.id
local noted = tonumber(redis.call('HGET', P .. 'job:' .. job.id, 'noted') or '0')
for i = 2, #ARGV, 4 do
  local number = tonumber(ARGV[i])
  if ARGV[i + 1] == job.fence and number > noted then
    if noted == 0 then redis.call('DEL', key) end
    redis.call('XADD', key, job.fence .. '-' .. ARGV[i], 's', ARGV[i + 2], 'd', ARGV[i + 3])
    noted = number
  end
end
redis.call('HSET', P .. 'job:' .. job.id, 'noted', whole(noted))
if job.state ~= 'running' then redis.call('EXPIRE', key, 60) end
event(job.id)
"""

_OUTPUT = r"""
local job = load(ARGV[1])
if not job then return {} end
-- An end without a second part is the last of the attempt.
return redis.call('XRANGE', P .. 'output:' .. job.id, job.fence .. '-' .. whole(ARGV[2] + 1), job.fence)
"""

_WEBHOOKS = r"""
-- ARGV: most, hold in microseconds.
local at = now()
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'webhooks', '-inf', whole(at), 'LIMIT', 0, ARGV[1])) do
  local job = load(id)
  if job then
    local held = whole(at + tonumber(ARGV[2]))
    redis.call('ZADD', P .. 'webhooks', held, id)
    redis.call('HSET', P .. 'job:' .. id, 'webhook_at', held)
    found[#found + 1] = record(id)
  else
    redis.call('ZREM', P .. 'webhooks', id)
  end
end
return found
"""

_SET_WEBHOOK = r"""
-- ARGV: id, webhook, moment of the next attempt.
local job = load(ARGV[1])
if not job then return end
redis.call('HSET', P .. 'job:' .. job.id, 'webhook', ARGV[2], 'webhook_at', ARGV[3])
if ARGV[3] == '' then
  redis.call('ZREM', P .. 'webhooks', job.id)
else
  redis.call('ZADD', P .. 'webhooks', ARGV[3], job.id)
end
event(job.id)
"""

_FORGET = r"""
local gone = 0
for _, id in ipairs(ARGV) do gone = gone + forget(id) end
return gone
"""

_FORGET_EXPIRED = r"""
-- ARGV: most, time in microseconds after which a silent worker is forgotten.
local at = now()
local gone = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'expiring', '-inf', whole(at), 'LIMIT', 0, ARGV[1])) do
  if forget(id) == 1 then gone = gone + 1 else redis.call('ZREM', P .. 'expiring', id) end
end
local silent = redis.call('ZRANGEBYSCORE', P .. 'workers:seen', '-inf', whole(at - tonumber(ARGV[2])), 'LIMIT', 0, 1000)
for _, id in ipairs(silent) do
  redis.call('ZREM', P .. 'workers:seen', id)
  redis.call('HDEL', P .. 'workers', id)
end
return gone
"""

_RECORDED = r"""
for _, id in ipairs(ARGV) do
  local key = P .. 'job:' .. id
  local found = redis.call('HMGET', key, 'ended_at', 'forgotten')
  if found[1] and found[1] ~= '' then
    redis.call('ZREM', P .. 'unrecorded', id)
    if found[2] == '1' then redis.call('DEL', key) else redis.call('HSET', key, 'recorded', '1') end
  end
end
"""

_DEPTH = r"""
while promote(now()) == 1000 do end
return {
  redis.call('HGETALL', P .. 'counts'),
  redis.call('ZCARD', P .. 'delayed'),
  redis.call('ZCARD', P .. 'leases'),
  redis.call('ZCARD', P .. 'dead'),
  redis.call('ZRANGE', P .. 'waiting', 0, 0, 'WITHSCORES')[2] or ''
}
"""

_WORKERS = r"""
-- ARGV: microseconds back.
local found = {}
local since = whole(now() - tonumber(ARGV[1]))
local seen = redis.call('ZRANGEBYSCORE', P .. 'workers:seen', since, '+inf', 'WITHSCORES')
for i = 1, #seen, 2 do
  found[#found + 1] = {redis.call('HGET', P .. 'workers', seen[i]), whole(tonumber(seen[i + 1]))}
end
return found
"""

SCRIPTS = {
    name: _COMMON + body
    for name, body in {
        "add": _ADD,
        "claim": _CLAIM,
        "finish": _FINISH,
        "release": _RELEASE,
        "cancel": _CANCEL,
        "reap": _REAP,
        "renew": _RENEW,
        "watch": _WATCH,
        "note": _NOTE,
        "output": _OUTPUT,
        "webhooks": _WEBHOOKS,
        "set_webhook": _SET_WEBHOOK,
        "forget": _FORGET,
        "forget_expired": _FORGET_EXPIRED,
        "recorded": _RECORDED,
        "depth": _DEPTH,
        "workers": _WORKERS,
    }.items()
}
