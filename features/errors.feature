Feature: Every failure has a code that says what to do next

  Background:
    Given a pool "words" with 1 slot
    And its context holds 64 tokens
    And the setting "admission.default_max_tokens" is 16

  @ORCHD-HTTP-2 @ORCHD-HTTP-4 @ORCHD-HTTP-5 @ORCHD-TASK-2 @ORCHD-TASK-4
  Scenario Outline: What does not fit is refused: <why>
    When alice submits the body:
      """
      <body>
      """
    Then the answer is 400 INVALID_PARAMS
    And the answer says:
      | retriable | false |
    And the message tells "<message>"

    Examples:
      | why                    | body                                                       | message                                    |
      | no JSON                | {"prompt":                                                 | not valid JSON: line 1, column 11          |
      | no object              | ["prompt"]                                                 | The body must be                           |
      | no input               | {"max_tokens":3}                                           | exactly one of prompt, messages and inputs |
      | two inputs             | {"prompt":"a","inputs":["b"]}                              | exactly one of prompt, messages and inputs |
      | a slip of the pen      | {"prompt":"a","max_token":3}                               | Did you mean \\"max_tokens\\"               |
      | a wrong type           | {"prompt":7}                                               | prompt must be a string                    |
      | a number as text       | {"prompt":"a","max_tokens":"3"}                            | max_tokens must be an integer              |
      | an empty prompt        | {"prompt":""}                                              | prompt must be a string of 1 to            |
      | a bad id               | {"prompt":"a","task_id":"story"}                           | task_id must be a UUID                     |
      | an unknown priority    | {"prompt":"a","priority":"urgent"}                         | priority must be                           |
      | an unknown field below | {"prompt":"a","sampling":{"temp":1}}                       | sampling.temp                              |
      | too warm               | {"prompt":"a","sampling":{"temperature":11}}               | sampling.temperature                       |
      | an unknown determinism | {"prompt":"a","determinism":"loose"}                       | determinism must be                        |
      | strict from the cache  | {"prompt":"a","determinism":"strict","kv_hint":"reuse"}    | kv_hint reuse does not go with             |
      | a budget below nothing | {"prompt":"a","budget":{"tokens":-1}}                      | budget.tokens must be an integer           |
      | query without inputs   | {"prompt":"a","query":"b"}                                 | query goes with inputs                     |
      | workload and input     | {"prompt":"a","workload":"rerank"}                         | workload rerank does not go with           |
      | nobody embeds          | {"inputs":["a"]}                                           | no pool offers workload embedding          |
      | nobody has the engine  | {"prompt":"a","engine":"llamacpp"}                         | no pool offers workload completion         |
      | max_tokens too large   | {"prompt":"a","max_tokens":64}                             | ask for fewer                              |
      | ctx too large          | {"prompt":"a","ctx":65}                                    | ask for at most that                       |
      | ctx too small          | {"prompt":"a","ctx":8}                                     | ask for fewer                              |
      | pin without pool       | {"prompt":"a","placement":{"mode":"pin"}}                  | needs placement.pin_pool_id                |
      | pool without pin       | {"prompt":"a","placement":{"mode":"auto","pin_pool_id":"words"}} | goes with placement.mode pin         |

  @ORCHD-TASK-4 @ORCHD-PLACE-1
  Scenario: An unknown model or pool is answered with the nearest
    When alice submits "story":
      | prompt    | Once upon a time |
      | model_ref | mock:wrods       |
    Then the answer is 400 INVALID_PARAMS
    And the message tells "the nearest is mock:words"
    And the answer says:
      | details.nearest | mock:words |
    When alice submits "story":
      | prompt    | Once upon a time                    |
      | placement | {"mode":"pin","pin_pool_id":"word"} |
    Then the answer is 400 INVALID_PARAMS
    And the message tells "the nearest is words"

  @ORCHD-TASK-4
  Scenario: A prompt that leaves no room for its answer is refused, and nothing is cut off
    Given the pool "words" is ready
    When alice submits a prompt of 60 words as "long" with max_tokens 16
    Then the answer is 400 INVALID_PARAMS
    And the message tells "exceed the context of 64 tokens"
    When alice submits a prompt of 40 words as "fits" with max_tokens 16
    Then the answer is 202
    And "fits" is done
    And "fits" has the record:
      | tokens_in  | 41 |
      | tokens_out | 16 |

  @ORCHD-TASK-4
  Scenario: Where the model is not loaded yet the prompt is measured before the first attempt
    Given a pool "lazy" with 1 slot
    And its context holds 64 tokens
    And its model is loaded at first use
    When alice submits a prompt of 60 words as "long" with max_tokens 16 to pool "lazy"
    Then the answer is 202
    When alice watches "long"
    Then the stream "long" ends with error INVALID_PARAMS
    And the stream "long" has 0 tokens
    And "long" is failed

  @ORCHD-TASK-5 @ORCHD-ADM-3
  Scenario Outline: A deadline that cannot be met is refused at once: <deadline> ms
    Given its tokens take 100 ms
    And the pool "words" is ready
    When alice submits "late":
      | prompt      | Once upon a time |
      | max_tokens  | 40               |
      | deadline_ms | <deadline>       |
    Then the answer is 400 DEADLINE_UNMET
    And the message tells "<message>"

    Examples:
      | deadline | message            |
      | 0        | has passed already |
      | -5       | has passed already |
      | 50       | cannot be met      |

  @ORCHD-TASK-5
  Scenario: A deadline that passes while the task waits ends it
    Given its tokens take 50 ms
    And the setting "admission.min_on_time_probability" is 0
    And the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 40               |
    And "running" is running
    And alice submits and streams "late":
      | prompt      | Once upon a time |
      | deadline_ms | 100              |
    Then the stream "late" ends with error DEADLINE_UNMET
    And the stream "late" has 0 tokens
    And "late" is failed
    When alice cancels "running"
    Then the answer is 204

  @ORCHD-TASK-3
  Scenario: A task_id stands for one request
    When alice submits "story":
      | prompt     | Once upon a time                     |
      | max_tokens | 3                                    |
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
    And alice submits "other":
      | prompt     | Once upon another time               |
      | max_tokens | 3                                    |
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
    Then the answer is 409 CONFLICT

  @ORCHD-HTTP-2 @ORCHD-HTTP-6
  Scenario Outline: What is not there, or takes another method: <method> <path>
    When alice sends <method> "<path>"
    Then the answer is <status> <code>

    Examples:
      | method | path                                                     | status | code               |
      | GET    | /v1/nothing                                              | 404    | NOT_FOUND          |
      | GET    | /v1/replicasets                                          | 404    | NOT_FOUND          |
      | GET    | /v1/tasks/00000000-0000-4000-8000-000000000000           | 404    | NOT_FOUND          |
      | GET    | /v1/tasks/00000000-0000-4000-8000-000000000000/stream    | 404    | NOT_FOUND          |
      | GET    | /v1/pools/word/health                                    | 404    | NOT_FOUND          |
      | GET    | /v1/tasks/7                                              | 400    | INVALID_PARAMS     |
      | GET    | /v1/tasks?limit=0                                        | 400    | INVALID_PARAMS     |
      | GET    | /v1/tasks?state=lost                                     | 400    | INVALID_PARAMS     |
      | GET    | /v1/tasks?page=2                                         | 400    | INVALID_PARAMS     |
      | GET    | /v1/tasks?cursor=x                                       | 400    | INVALID_PARAMS     |
      | DELETE | /v1/tasks                                                | 405    | METHOD_NOT_ALLOWED |
      | GET    | /v1/tasks/00000000-0000-4000-8000-000000000000/cancel    | 405    | METHOD_NOT_ALLOWED |
      | POST   | /v1/pools                                                | 405    | METHOD_NOT_ALLOWED |
      | OPTIONS | /v1/tasks                                               | 405    | METHOD_NOT_ALLOWED |

  @ORCHD-ATT-1
  Scenario: An engine that is lost before the first token is replaced and the task tried again
    Given its engine crashes after 0 tokens in generation 1
    And the setting "restart.backoff_ms" is 1
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the stream "story" ends with end
    And the stream "story" has 3 tokens
    And "story" has the record:
      | state    | "done" |
      | attempts | 2      |

  @ORCHD-ATT-1 @ORCHD-STREAM-7
  Scenario: An engine that is lost in every attempt fails the task
    Given its engine crashes after 0 tokens in every generation
    And the setting "restart.backoff_ms" is 1
    When alice submits and streams "story":
      | prompt | Once upon a time |
    Then the stream "story" ends with error WORKER_RESET
    And the error event of "story" says:
      | retriable | true |
    And "story" has the record:
      | state           | "failed"       |
      | attempts        | 3              |
      | error.code      | "WORKER_RESET" |
      | error.retriable | true           |

  @ORCHD-ATT-1 @ORCHD-STREAM-7
  Scenario: An engine that is lost at the same token in every attempt fails the task, and what was said stays
    Given its engine crashes after 5 tokens in every generation
    And the setting "restart.backoff_ms" is 1
    When alice submits and streams "story":
      | prompt      | Once upon a time |
      | determinism | strict           |
    Then the stream "story" ends with error WORKER_RESET
    And the stream "story" has 5 tokens
    And "story" has the record:
      | attempts | 4 |
    When alice watches "story" as "replay"
    Then the streams "story" and "replay" are the same

  @ORCHD-ATT-1 @ORCHD-STREAM-7
  Scenario Outline: An engine that falls silent after <tokens> tokens in every attempt is given up on
    Given its engine stalls after <tokens> tokens in every generation
    And it may be silent for 60 ms
    When alice submits and streams "story":
      | prompt      | Once upon a time |
      | determinism | strict           |
    Then the stream "story" ends with error DECODE_TIMEOUT
    And the stream "story" has <tokens> tokens
    And the error event of "story" says:
      | retriable | true |
    And no slot of "words" is busy

    Examples:
      | tokens |
      | 0      |
      | 4      |

  @ORCHD-POOL-4 @ORCHD-HTTP-3
  Scenario: A pool whose engine never starts is given up, and says so to whoever waits and whoever comes
    Given its model takes 20 ms to load
    And its engine never loads its model
    And the setting "restart.backoff_ms" is 1
    And the setting "restart.breaker_failures" is 3
    When alice submits and streams "waiting":
      | prompt | Once upon a time |
    Then the stream "waiting" ends with error POOL_UNAVAILABLE
    When alice submits "refused":
      | prompt | Once upon a time |
    Then the answer is 503 POOL_UNAVAILABLE
    And the answer says:
      | retriable | true  |
      | pool_id   | words |
    And Retry-After is in whole seconds, rounded up, and X-Backoff-Ms says the same

  @ORCHD-CLI-4 @ORCHD-HTTP-3
  Scenario: A daemon that shuts down takes nothing new and lets running work end
    Given its tokens take 10 ms
    And the setting "shutdown.drain_deadline_ms" is 8000
    And the pool "words" is ready
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 30               |
    And "story" has received 2 tokens
    And the daemon is told to shut down
    And alice submits "refused":
      | prompt | Once upon a time |
    Then the answer is 503 POOL_UNREADY
    When a stranger asks for "/readyz"
    Then the answer is 503
    And the stream "story" ends with end
    And the stream "story" has 30 tokens
    And the daemon ends
