Feature: An operator drains a pool

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-DRAIN-1 @ORCHD-HTTP-4
  Scenario: What runs is cut at the deadline, what waits is held, and all of it goes on after the resume
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt      | Once upon a time    |
      | max_tokens  | 250                 |
      | determinism | strict              |
    And "running" has received 2 tokens
    And alice submits "waiting"
    And the operator drains "words" within 20 ms
    Then the answer is 202
    And the answer says:
      | ready    | false |
      | draining | true  |
      | state    | ready |
    And "running" is queued
    And the pool "words" is drained
    When alice submits "held"
    Then the answer is 202
    And "waiting" waits because "is drained"
    And the metrics are:
      | pool_draining{pool_id="words"} | 1 |
      | pool_ready{pool_id="words"}    | 0 |
    When the operator sends POST "/v1/pools/words/resume"
    Then the answer is 200
    And the answer says:
      | ready    | true  |
      | draining | false |
      | drain    | null  |
    And all of them are done
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 250 |
      | continuations | 1   |
      | exact         | yes |

  @ORCHD-DRAIN-1
  Scenario: What ends before the deadline is not cut
    Given the pool "words" is ready
    When alice submits and streams "short":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    And "short" has received 2 tokens
    And the operator drains "words" within 20000 ms
    Then the stream "short" ends with end
    And the end event of "short" says:
      | continuations | 0 |
    And the pool "words" is drained

  @ORCHD-DRAIN-1
  Scenario: A drain outlives the daemon
    Given the pool "words" is ready
    When the operator drains "words" within 0 ms
    And alice submits "held"
    And the daemon is stopped
    And the daemon starts again
    And the pool "words" is ready
    Then "held" waits because "is drained"
    When the operator sends POST "/v1/pools/words/resume"
    Then all of them are done

  @ORCHD-DRAIN-2 @ORCHD-OBS-3
  Scenario: Others are preferred, and with none left the daemon is not ready
    Given a pool "more" with 1 slot
    And the pool "words" is ready
    And the pool "more" is ready
    When the operator drains "more" within 0 ms
    And alice asks what would become of:
      | prompt | Once upon a time |
    Then the answer says:
      | placement.pools.0.reason | takes_tasks |
      | placement.pools.1.reason | drained     |
    When a stranger asks for "/readyz"
    Then the answer is 200
    When the operator drains "words" within 0 ms
    And a stranger asks for "/readyz"
    Then the answer is 503

  @ORCHD-DRAIN-1 @ORCHD-AUTH-2
  Scenario: Only admins drain and resume
    When alice drains "words" within 0 ms
    Then the answer is 403 FORBIDDEN
    When alice sends POST "/v1/pools/words/resume"
    Then the answer is 403 FORBIDDEN
    When the operator drains "wrods" within 0 ms
    Then the answer is 404 NOT_FOUND

  @ORCHD-DRAIN-1
  Scenario: Health tells what still runs, and that the engines stay
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt      | Once upon a time |
      | max_tokens  | 250              |
      | determinism | strict           |
    And "running" has received 2 tokens
    And the operator drains "words" within 60000 ms
    Then the answer says:
      | drain.running | 1        |
      | drain.state   | draining |
    When the operator drains "words" within 0 ms
    Then the answer is 202
    And "running" is queued
    And the pool "words" is drained
    When alice asks for "/v1/pools/words/health"
    Then the answer says:
      | live                 | true    |
      | ready                | false   |
      | draining             | true    |
      | replicas.0.state     | ready   |
      | drain.running        | 0       |
      | drain.state          | drained |
      | metrics.tasks_failed | 0       |
    When the operator sends POST "/v1/pools/words/resume"
    Then the stream "running" ends with end
    And the end event of "running" says:
      | continuations | 1   |
      | exact         | yes |

  @ORCHD-DRAIN-1
  Scenario: What was cut waits before what never ran
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 250              |
    And "running" has received 2 tokens
    And alice submits "waiting"
    And the operator drains "words" within 0 ms
    Then "running" is queued
    And "running" has the record:
      | queue_position | 0 |
    And "waiting" has the record:
      | queue_position | 1 |

  @ORCHD-DRAIN-1 @ORCHD-TASK-5
  Scenario: Cancels and deadlines go on in a drained pool
    Given the pool "words" is ready
    When the operator drains "words" within 0 ms
    And alice submits "canceled"
    And alice cancels "canceled"
    Then the answer is 204
    And "canceled" is canceled
    When alice submits and streams "late":
      | prompt      | Once upon a time |
      | max_tokens  | 3                |
      | deadline_ms | 500              |
    Then the stream "late" ends with error DEADLINE_UNMET

  @ORCHD-DRAIN-1 @ORCHD-ADM-1
  Scenario: The queue of a drained pool is bounded as ever
    Given its queue holds 1 task
    And the pool "words" is ready
    When the operator drains "words" within 0 ms
    And alice submits "held"
    Then the answer is 202
    When alice submits "one too many"
    Then the answer is 429 ADMISSION_REJECT

  @ORCHD-DRAIN-1
  Scenario: A drain outlives a kill of the daemon, and what was cut goes on after the resume
    Given the daemon runs as a process of its own
    And the pool "words" is ready
    When alice submits "running":
      | prompt      | Once upon a time |
      | max_tokens  | 100              |
      | determinism | strict           |
    And "running" is running
    And the operator drains "words" within 60000 ms
    And the daemon is killed
    And the daemon starts again
    And the pool "words" is ready
    Then "running" waits because "is drained"
    When the operator sends POST "/v1/pools/words/resume"
    Then all of them are done

  @ORCHD-DRAIN-1
  Scenario: A resume where nothing was drained changes nothing
    Given the pool "words" is ready
    When the operator sends POST "/v1/pools/words/resume"
    Then the answer is 200
    And the answer says:
      | ready | true |
      | drain | null |

  @ORCHD-DRAIN-1 @ORCHD-HTTP-4
  Scenario: A drain that cannot be is refused, and nothing is drained
    When the operator drains "words" within -1 ms
    Then the answer is 400 INVALID_PARAMS
    When the operator sends POST "/v1/pools/words/drain" with the body:
      """
      {"deadline": 1000}
      """
    Then the answer is 400 INVALID_PARAMS
    And the message tells "deadline_ms"
    When the operator asks for "/v1/pools/words/health"
    Then the answer says:
      | drain | null |

  @ORCHD-DRAIN-2
  Scenario: What may go elsewhere does, what may not waits, and is promised a start as if the pool were resumed now
    Given a pool "more" with 1 slot
    And the pool "words" is ready
    And the pool "more" is ready
    When the operator drains "words" within 0 ms
    And alice submits "free"
    Then "free" has the record:
      | pool_id | more |
    And "free" is done
    When alice submits "pinned" to pool "words":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 202
    And the promised start is less than 5000 ms away
    And "pinned" waits because "is drained"
    When the operator drains "more" within 0 ms
    And a stranger asks for "/readyz"
    Then the answer is 503
    And the answer's text tells "POOL_UNREADY"
