Feature: Work is accepted with a promise and comes back token by token

  Background:
    Given a pool "words" with 2 slots

  @ORCHD-TASK-1
  Scenario: A task is accepted with a promise
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 4                |
    Then the answer is 202
    And the answer says:
      | pool_id             | words |
      | session_id          | null  |
      | queue_position      | 0     |
      | on_time_probability | null  |
      | backoff_ms          | 0     |
    And the promised end is not before the promised start
    And the stream of "story" is where the answer says

  @ORCHD-STREAM-1 @ORCHD-STREAM-6
  Scenario: An accepted task is streamed in order
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 12               |
    And alice watches "story"
    Then the stream "story" ends with end
    And the stream "story" has 12 tokens
    And the started event of "story" says:
      | pool_id   | words       |
      | engine    | mock        |
      | model_ref | mock:words  |
      | attempt   | 1           |
      | tokens_in | 5           |
    And the end event of "story" says:
      | tokens_in     | 5        |
      | tokens_out    | 12       |
      | finish_reason | "length" |
      | continuations | 0        |
      | exact         | "yes"    |

  @ORCHD-TASK-9
  Scenario: Submitting and streaming take one round trip
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    Then the answer is 200
    And the stream "story" ends with end
    And the stream "story" has 5 tokens
    And "story" is done

  @ORCHD-TASK-6
  Scenario: A task runs though nobody watches
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    Then "story" is done
    And "story" has the record:
      | tokens_in     | 5        |
      | tokens_out    | 5        |
      | attempts      | 1        |
      | finish_reason | "length" |
      | error         | null     |
      | waiting_for   | null     |

  @ORCHD-STREAM-3
  Scenario: Several viewers read the same, each at its own time
    Given its tokens take 5 ms
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    And "story" has received 3 tokens
    And alice watches "story" as "second viewer"
    And "story" has received 10 tokens
    And alice watches "story" as "third viewer"
    Then the stream "story" ends with end
    And the streams "story" and "second viewer" are the same
    And the streams "story" and "third viewer" are the same

  @ORCHD-STREAM-2
  Scenario: A finished task is streamed whole
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    And "story" is done
    And alice watches "story"
    Then the stream "story" ends with end
    And the stream "story" has 5 tokens

  @ORCHD-STREAM-2
  Scenario: A broken stream goes on after the last event that was received
    Given its tokens take 5 ms
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 200              |
    And "story" has received 4 tokens
    And the viewer "story" leaves
    And alice watches "story" as "returned" from where "story" stopped
    Then "story" and then "returned" are one whole stream of 200 tokens

  @ORCHD-STREAM-2
  Scenario Outline: A replay begins after the event that is named, <how>
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 6                |
    And "story" is done
    And alice watches "story" as "rest" after event 3 by <how>
    Then the stream "rest" after event 3 ends with end
    And the stream "rest" has 3 tokens

    Examples:
      | how           |
      | Last-Event-ID |
      | ?after        |

  @ORCHD-STREAM-2
  Scenario: Last-Event-ID goes before ?after
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 6                |
    And "story" is done
    And alice watches "story" as "rest" after event 4 by both
    Then the stream "rest" after event 4 ends with end

  @ORCHD-TASK-2
  Scenario: A chat is rendered by the engine's template
    When alice submits and streams "chat":
      | messages   | [{"role":"system","content":"Be brief."},{"role":"user","content":"Hello"}] |
      | max_tokens | 4 |
    Then the stream "chat" ends with end
    And the stream "chat" has 4 tokens
    And the prompt of "chat" had more than 10 tokens

  @ORCHD-TASK-2
  Scenario: Texts are embedded
    Given a pool "vectors" with 1 slot
    And it offers embedding
    When alice submits and streams "texts":
      | inputs | ["a quiet river","the quiet river","seven engines"] |
    Then the stream "texts" ends with end
    And the stream "texts" has 0 tokens
    And "texts" brought 3 unit vectors, of which 1 and 2 are nearest

  @ORCHD-TASK-2
  Scenario: Texts are ranked against a query
    Given a pool "ranks" with 1 slot
    And it offers rerank
    When alice submits and streams "texts":
      | query  | how to bake bread                                              |
      | inputs | ["The history of the bicycle.","How to bake good bread, fast."] |
    Then the stream "texts" ends with end
    And "texts" ranked input 1 first

  @ORCHD-STREAM-1
  Scenario: A seed that was not given is drawn, reported, and repeats the run
    When alice submits and streams "first":
      | prompt     | Once upon a time |
      | max_tokens | 16               |
    And the stream "first" ends with end
    And alice submits and streams "again" with the seed of "first":
      | prompt     | Once upon a time |
      | max_tokens | 16               |
    And the stream "again" ends with end
    Then the streams "first" and "again" have the same tokens

  @ORCHD-STREAM-1
  Scenario: Another seed says something else, and greedy decoding knows no seed
    When alice submits and streams "seven":
      | prompt     | Once upon a time |
      | max_tokens | 16               |
      | seed       | 7                |
    And alice submits and streams "eight":
      | prompt     | Once upon a time |
      | max_tokens | 16               |
      | seed       | 8                |
    And alice submits and streams "greedy seven":
      | prompt     | Once upon a time  |
      | max_tokens | 16                |
      | seed       | 7                 |
      | sampling   | {"temperature":0} |
    And alice submits and streams "greedy eight":
      | prompt     | Once upon a time  |
      | max_tokens | 16                |
      | seed       | 8                 |
      | sampling   | {"temperature":0} |
    Then the streams "seven" and "eight" have different tokens
    And the streams "greedy seven" and "greedy eight" have the same tokens

  @ORCHD-STREAM-1
  Scenario: A stop string ends the text before it
    When alice submits and streams "uncut":
      | prompt     | Once upon a time  |
      | max_tokens | 64                |
      | sampling   | {"temperature":0} |
    And alice submits and streams "cut" that stops at what "uncut" said at token 9
    Then the stream "cut" ends with end
    And "cut" said what "uncut" said before that
    And the end event of "cut" says:
      | finish_reason | "stop" |

  @ORCHD-TASK-7
  Scenario: A task can be seen while it waits, runs and has ended
    Given a pool "narrow" with 1 slot
    And its tokens take 10 ms
    And the pool "narrow" is ready
    When alice submits "running" to pool "narrow":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And alice submits "waiting" to pool "narrow":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
      | metadata   | {"team":"docs"}  |
    Then "running" is running
    And "waiting" has the record:
      | state          | "queued"        |
      | queue_position | 0               |
      | pool_id        | "narrow"        |
      | replica_id     | null            |
      | attempts       | 0               |
      | metadata       | {"team":"docs"} |
    And "waiting" waits because "all 1 slots of pool narrow are busy"
    When alice cancels "running"
    Then "waiting" is done

  @ORCHD-TASK-8
  Scenario: Tasks are listed newest first, page by page
    When alice submits 5 tasks "t1", "t2", "t3", "t4", "t5"
    And all of them are done
    And alice asks for "/v1/tasks?limit=2"
    Then the answer lists "t5", "t4"
    When alice asks for the next page
    Then the answer lists "t3", "t2"
    When alice asks for the next page
    Then the answer lists "t1"
    And there is no next page
    When alice asks for "/v1/tasks?state=failed"
    Then the answer lists nothing

  @ORCHD-TASK-8
  Scenario: Tasks are listed by their session
    When alice submits "in":
      | prompt     | Once upon a time                     |
      | max_tokens | 1                                    |
      | session_id | 6e5d7a1b-93c0-4f7e-8d21-5b0c9a7f4e12 |
    And alice submits "out":
      | prompt     | Once upon a time |
      | max_tokens | 1                |
    And alice asks for "/v1/tasks?session_id=6e5d7a1b-93c0-4f7e-8d21-5b0c9a7f4e12"
    Then the answer lists "in"

  @ORCHD-PLACE-1
  Scenario: A pinned task runs on its pool, also where another is idle
    Given a pool "other" with 1 slot
    When alice submits and streams "pinned":
      | prompt     | Once upon a time                        |
      | max_tokens | 2                                       |
      | placement  | {"mode":"pin","pin_pool_id":"other"}    |
    Then the stream "pinned" ends with end
    And the started event of "pinned" says:
      | pool_id    | other   |
      | replica_id | other-0 |

  @ORCHD-PLACE-1
  Scenario: A model that is named decides the pool
    Given a pool "other" with 1 slot
    When alice submits "named":
      | prompt     | Once upon a time |
      | max_tokens | 2                |
      | model_ref  | mock:other       |
    Then the answer says:
      | pool_id | other |
